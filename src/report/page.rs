//! The HTML around tables and figures.

/// A figure could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw the figure: {problem}")]
pub struct ReportError {
    /// What the plotting library said.
    pub problem: String,
}

impl ReportError {
    pub(super) fn new(problem: impl std::fmt::Display) -> Self {
        Self { problem: problem.to_string() }
    }
}

/// Where results come from, as the foot of a page states it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provenance {
    /// The command that was run.
    pub command: String,
    /// The weights: a path, or that they are the bundled ones.
    pub weights: String,
    /// One line on the task.
    pub task: String,
    /// Threads that were used.
    pub threads: usize,
    /// Any further names and values.
    pub more: Vec<(String, String)>,
}

/// One number that matters.
pub(super) struct Highlight {
    pub value: String,
    pub label: String,
}

/// A whole page.
pub(super) fn page(title: &str, lead: &str, highlights: &[Highlight], body: &str) -> String {
    let cards: String = highlights
        .iter()
        .map(|h| format!("<li><b>{}</b><span>{}</span></li>", escape(&h.value), escape(&h.label)))
        .collect();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <header>\n<h1>{title}</h1>\n<p class=\"lead\">{lead}</p>\n</header>\n\
         <ul class=\"cards\">{cards}</ul>\n{body}</main>\n</body>\n</html>\n",
        title = escape(title),
        lead = escape(lead),
    )
}

/// A figure or table with a heading and a sentence on how to read it.
pub(super) fn section(heading: &str, text: &str, content: &str) -> String {
    format!(
        "<section>\n<h2>{}</h2>\n<p>{}</p>\n{content}</section>\n",
        escape(heading),
        escape(text)
    )
}

/// A figure in a page: the document's text colour is its ink.
pub(super) fn figure(svg: &str) -> String {
    format!("<figure>{}</figure>\n", svg.trim())
}

/// Names and values.
pub(super) fn facts(provenance: &Provenance, settings: &[(String, String)]) -> String {
    let fixed = [
        ("command", provenance.command.clone()),
        ("lopt", env!("CARGO_PKG_VERSION").to_owned()),
        ("dfdx", "0.13.0".to_owned()),
        ("task", provenance.task.clone()),
        ("weights", provenance.weights.clone()),
        ("threads", provenance.threads.to_string()),
    ];
    let fixed = fixed.into_iter().map(|(name, value)| (name.to_owned(), value));
    let rows: String = fixed
        .chain(provenance.more.iter().cloned())
        .chain(settings.iter().cloned())
        .map(|(name, value)| format!("<dt>{}</dt><dd>{}</dd>\n", escape(&name), escape(&value)))
        .collect();
    format!("<dl>\n{rows}</dl>\n")
}

/// Text as HTML.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const STYLE: &str = "\
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #dfe3e8; --card: #fff; --page: #f6f7f9; --accent: #d6336c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b4; --line: #2d3540; --card: #191f27; --page: #11151b; --accent: #f06595; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; letter-spacing: -0.01em; }
h2 { font-size: 19px; margin: 0 0 4px; }
p { margin: 0 0 16px; color: var(--soft); max-width: 90ch; }
.lead { font-size: 17px; }
.cards { list-style: none; display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 14px; padding: 0; margin: 24px 0; }
.cards li, section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.cards li { padding: 16px 18px; }
.cards b { display: block; font-size: 28px; line-height: 1.2; letter-spacing: -0.02em; font-variant-numeric: tabular-nums; }
.cards li:first-child b { color: var(--accent); }
.cards span { color: var(--soft); font-size: 14px; line-height: 1.35; display: block; margin-top: 4px; }
section { padding: 22px 24px; margin: 0 0 20px; }
figure { margin: 0; overflow-x: auto; }
figure svg { display: block; width: 100%; min-width: 600px; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 8px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
tbody tr:last-child td { border-bottom: 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 0; font-size: 14px; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; font-family: ui-monospace, 'SF Mono', Menlo, Consolas, monospace; font-size: 13px; }
@media print { body { background: none; } section { break-inside: avoid; } }
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_break_out_of_the_page() {
        let provenance = Provenance { command: "<script>".into(), ..Provenance::default() };
        let html = page("a & b", "", &[], &facts(&provenance, &[]));
        assert!(html.contains("a &amp; b") && html.contains("&lt;script&gt;"));
        assert!(!html.contains("<script"));
    }
}
