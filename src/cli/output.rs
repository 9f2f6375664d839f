//! Results, errors and exit codes.

use std::error::Error;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

/// Wrong arguments.
pub const USAGE: u8 = 2;
const FAILED: u8 = 1;
const INTERRUPTED: u8 = 130;

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub enum Failure {
    /// Something went wrong.
    Error(Box<dyn Error>),
    /// The arguments do not go together.
    Usage(String),
    /// Ctrl-C; the text says how to go on.
    Interrupted(String),
    /// Nobody reads standard output any more, which is no fault.
    Closed,
}

impl<E: Into<Box<dyn Error>>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

impl Failure {
    /// Says what happened on standard error.
    pub fn report(self) -> ExitCode {
        let (text, code) = match self {
            Self::Closed => return ExitCode::SUCCESS,
            Self::Error(error) => (format!("error: {}", chain(error.as_ref())), FAILED),
            Self::Usage(text) => (format!("error: {text}"), USAGE),
            Self::Interrupted(text) => (format!("interrupted: {text}"), INTERRUPTED),
        };
        let _ = writeln!(std::io::stderr(), "{text}");
        ExitCode::from(code)
    }
}

/// An error and what caused it, each on a line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let message = cause.to_string();
        // A transparent error says the same again.
        if !text.ends_with(&message) {
            text.push_str(&format!("\n  caused by: {message}"));
        }
        source = cause.source();
    }
    text
}

/// Writes text to standard output.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Failure::Closed),
        result => Ok(result?),
    }
}

/// Writes one JSON object to standard output.
pub fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Makes the folder that a file shall lie in.
pub fn make_folder(path: &Path) -> Result<(), Failure> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .map_err(|e| format!("cannot make the folder {}: {e}", folder.display()))?;
    }
    Ok(())
}

/// Writes a file; the error names it.
pub fn write_file(path: &Path, contents: &[u8]) -> Result<(), Failure> {
    make_folder(path)?;
    Ok(std::fs::write(path, contents)
        .map_err(|e| format!("cannot write {}: {e}", path.display()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn an_error_names_its_causes_once() {
        let error = Outer(std::io::Error::other("inner"));
        assert_eq!(chain(&error), "outer\n  caused by: inner");
    }
}
