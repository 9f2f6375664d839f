//! Episodes of cart-pole side by side, as an animated SVG that needs no script.

use std::fmt::Write;

use super::figure::LEARNED;
use crate::tasks::Course;

/// Width of a track, and height of a panel, in pixels.
const TRACK: f64 = 440.0;
const HEIGHT: f64 = 210.0;
/// Where the cart stands, from the top.
const FLOOR: f64 = 170.0;
/// Half the track in metres, and the whole pole.
const REACH: f64 = 2.4;
const POLE: f64 = 1.0;
/// Frames of an episode that are drawn: every fourth, moved between.
const EVERY: usize = 4;
/// Frames in a second.
const RATE: f64 = 50.0;

/// Episodes with a caption each, played together over and over; one that has ended
/// stands still until the longest has.
pub(super) fn episodes(title: &str, panels: &[(&str, &Course)]) -> String {
    let longest = panels.iter().map(|(_, course)| course.0.len()).max().unwrap_or(0);
    let seconds = longest as f64 / RATE + 1.0;
    let width = TRACK * panels.len() as f64 + 20.0 * (panels.len() + 1) as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"16\">\n<title>{title}</title>\n"
    );
    for (n, (caption, course)) in panels.iter().enumerate() {
        let left = 20.0 + n as f64 * (TRACK + 20.0);
        let steps = course.0.len().saturating_sub(1);
        // Writing to a string cannot fail.
        let _ = write!(
            svg,
            "<g transform=\"translate({left} 0)\">\n\
             <text x=\"0\" y=\"20\" fill=\"currentColor\">{caption}: {steps} steps</text>\n\
             <path d=\"M0 {FLOOR}H{TRACK}\" stroke=\"currentColor\" opacity=\"0.5\"/>\n{}</g>\n",
            cart(course, seconds)
        );
    }
    svg + "</svg>\n"
}

/// A cart and its pole, which move.
fn cart(course: &Course, seconds: f64) -> String {
    let scale = TRACK / (2.0 * REACH);
    let last = course.0.len().saturating_sub(1);
    let frames = || {
        (0..=last).filter(|step| step % EVERY == 0 || *step == last).map(|step| {
            let time = step as f64 / RATE / seconds;
            (time, course.0.get(step).copied().unwrap_or_default())
        })
    };
    let list = |value: &dyn Fn([f64; 2]) -> String| {
        let mut values: Vec<_> = frames().map(|(_, frame)| value(frame)).collect();
        values.extend(values.last().cloned());
        values.join(";")
    };
    let times = frames().map(|(time, _)| format!("{time:.4}")).chain(["1".to_owned()]);
    let times = times.collect::<Vec<_>>().join(";");
    let moves = |kind: &str, values: String| {
        format!(
            "<animateTransform attributeName=\"transform\" type=\"{kind}\" dur=\"{seconds:.2}s\" \
             repeatCount=\"indefinite\" keyTimes=\"{times}\" values=\"{values}\"/>"
        )
    };
    let place = moves("translate", list(&|[x, _]| format!("{:.1} {FLOOR}", (x + REACH) * scale)));
    let lean = moves("rotate", list(&|[_, angle]| format!("{:.2} 0 -20", angle.to_degrees())));
    let length = POLE * scale;
    format!(
        "<g transform=\"translate({} {FLOOR})\">{place}\n\
         <rect x=\"-23\" y=\"-24\" width=\"46\" height=\"24\" rx=\"3\" fill=\"currentColor\"/>\n\
         <g><path d=\"M0 -20V{:.1}\" stroke=\"rgb({},{},{})\" stroke-width=\"7\" \
         stroke-linecap=\"round\"/>{lean}</g></g>\n",
        TRACK / 2.0,
        -20.0 - length,
        LEARNED.0,
        LEARNED.1,
        LEARNED.2,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shorter_episode_waits_for_the_longer() {
        let long = Course(vec![[0.0, 0.01]; 100]);
        let short = Course(vec![[0.0, 0.0], [2.4, 0.2]]);
        let svg = episodes("two", &[("before", &short), ("after", &long)]);
        assert!(svg.contains("before: 1 steps") && svg.contains("after: 99 steps"));
        assert_eq!(svg.matches("dur=\"3.00s\"").count(), 4);
        // At the right end of the track, and held there.
        assert!(svg.contains("values=\"220.0 170;440.0 170;440.0 170\""), "{svg}");
        assert!(svg.contains("keyTimes=\"0.0000;0.0067;1\""), "{svg}");
    }
}
