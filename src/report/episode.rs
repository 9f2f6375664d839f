//! Episodes side by side, as an animated SVG that needs no script.

use std::fmt::Write;

use super::figure::LEARNED;
use crate::tasks::Course;

/// Width of a track, and height of a panel, in pixels.
const TRACK: f64 = 440.0;
const HEIGHT: f64 = 210.0;
/// Where the cart, and the bottom of the valley, stand, from the top.
const FLOOR: f64 = 170.0;
/// Half the track of cart-pole in metres, and the whole pole.
const REACH: f64 = 2.4;
const POLE: f64 = 1.0;
/// Ends of the valley, and place of its flag.
const VALLEY: [f64; 2] = [-1.2, 0.6];
const FLAG: f64 = 0.5;
/// Frames of an episode that are drawn: every fourth, moved between.
const EVERY: usize = 4;
/// Frames in a second.
const RATE: f64 = 50.0;

/// Episodes with a caption each, played together over and over; one that has ended
/// stands still until the longest has.
pub(super) fn episodes(title: &str, panels: &[(&str, &Course)]) -> String {
    let longest = panels.iter().map(|(_, course)| states(course)).max().unwrap_or(0);
    let seconds = longest as f64 / RATE + 1.0;
    let width = TRACK * panels.len() as f64 + 20.0 * (panels.len() + 1) as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"16\">\n<title>{title}</title>\n"
    );
    for (n, (caption, course)) in panels.iter().enumerate() {
        let left = 20.0 + n as f64 * (TRACK + 20.0);
        let steps = states(course).saturating_sub(1);
        let drawing = match course {
            Course::CartPole(states) => cart(states, seconds),
            Course::MountainCar(places) => car(places, seconds),
        };
        // Writing to a string cannot fail.
        let _ = write!(
            svg,
            "<g transform=\"translate({left} 0)\">\n\
             <text x=\"0\" y=\"20\" fill=\"currentColor\">{caption}: {steps} steps</text>\n\
             {drawing}</g>\n"
        );
    }
    svg + "</svg>\n"
}

fn states(course: &Course) -> usize {
    match course {
        Course::CartPole(states) => states.len(),
        Course::MountainCar(places) => places.len(),
    }
}

/// An `animateTransform` that goes through the states, and stays at the last for the
/// rest of so many seconds.
fn animate<S: Copy>(states: &[S], seconds: f64, kind: &str, value: impl Fn(S) -> String) -> String {
    let last = states.len().saturating_sub(1);
    let frames = states.iter().enumerate().filter(|(step, _)| step % EVERY == 0 || *step == last);
    let (mut times, mut values): (Vec<_>, Vec<_>) = frames
        .map(|(step, state)| (format!("{:.4}", step as f64 / RATE / seconds), value(*state)))
        .unzip();
    times.push("1".to_owned());
    values.extend(values.last().cloned());
    format!(
        "<animateTransform attributeName=\"transform\" type=\"{kind}\" dur=\"{seconds:.2}s\" \
         repeatCount=\"indefinite\" keyTimes=\"{}\" values=\"{}\"/>",
        times.join(";"),
        values.join(";")
    )
}

/// A cart and its pole, which move on a level track.
fn cart(states: &[[f64; 2]], seconds: f64) -> String {
    let scale = TRACK / (2.0 * REACH);
    let place = animate(states, seconds, "translate", |[x, _]| {
        format!("{:.1} {FLOOR}", (x + REACH) * scale)
    });
    let lean =
        animate(states, seconds, "rotate", |[_, angle]| format!("{:.2} 0 -20", angle.to_degrees()));
    format!(
        "<path d=\"M0 {FLOOR}H{TRACK}\" stroke=\"currentColor\" opacity=\"0.5\"/>\n\
         <g transform=\"translate({} {FLOOR})\">{place}\n\
         <rect x=\"-23\" y=\"-24\" width=\"46\" height=\"24\" rx=\"3\" fill=\"currentColor\"/>\n\
         <g><path d=\"M0 -20V{:.1}\" stroke=\"{}\" stroke-width=\"7\" \
         stroke-linecap=\"round\"/>{lean}</g></g>\n",
        TRACK / 2.0,
        -20.0 - POLE * scale,
        learned(),
    )
}

/// A car that moves in a valley, and the flag that it is to reach.
fn car(places: &[f64], seconds: f64) -> String {
    let scale = TRACK / (VALLEY[1] - VALLEY[0]);
    let across = |place: f64| (place - VALLEY[0]) * scale;
    // As Gym draws it: 0.45 sin 3x, here to scale.
    let down = |place: f64| FLOOR - 0.45 * ((3.0 * place).sin() + 1.0) * scale * 0.5;
    let ground: Vec<String> = (0..=60)
        .map(|n| VALLEY[0] + f64::from(n) / 60.0 * (VALLEY[1] - VALLEY[0]))
        .map(|place| format!("{:.1} {:.1}", across(place), down(place)))
        .collect();
    let moves = animate(places, seconds, "translate", |place| {
        format!("{:.1} {:.1}", across(place), down(place))
    });
    let turns = animate(places, seconds, "rotate", |place| {
        let rise = down(place - 0.01) - down(place + 0.01);
        format!("{:.1}", -rise.atan2(0.02 * scale).to_degrees())
    });
    let (x, y) = (across(FLAG), down(FLAG));
    format!(
        "<path d=\"M{}\" fill=\"none\" stroke=\"currentColor\" opacity=\"0.5\"/>\n\
         <path d=\"M{x:.1} {y:.1}v-34l16 8l-16 8\" fill=\"{}\" stroke=\"currentColor\"/>\n\
         <g transform=\"translate({:.1} {FLOOR})\">{moves}<g>{turns}\n\
         <rect x=\"-16\" y=\"-15\" width=\"32\" height=\"11\" rx=\"3\" fill=\"currentColor\"/>\n\
         <circle cx=\"-9\" cy=\"-4\" r=\"4\"/><circle cx=\"9\" cy=\"-4\" r=\"4\"/></g></g>\n",
        ground.join("L"),
        learned(),
        across(-std::f64::consts::FRAC_PI_6),
    )
}

/// The colour of learned optimizers.
fn learned() -> String {
    format!("rgb({},{},{})", LEARNED.0, LEARNED.1, LEARNED.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shorter_episode_waits_for_the_longer() {
        let long = Course::CartPole(vec![[0.0, 0.01]; 100]);
        let short = Course::CartPole(vec![[0.0, 0.0], [2.4, 0.2]]);
        let svg = episodes("two", &[("before", &short), ("after", &long)]);
        assert!(svg.contains("before: 1 steps") && svg.contains("after: 99 steps"));
        assert_eq!(svg.matches("dur=\"3.00s\"").count(), 4);
        // At the right end of the track, and held there.
        assert!(svg.contains("values=\"220.0 170;440.0 170;440.0 170\""), "{svg}");
        assert!(svg.contains("keyTimes=\"0.0000;0.0067;1\""), "{svg}");
    }

    #[test]
    fn a_car_stands_level_in_the_valley_and_leans_on_the_hill() {
        let course = Course::MountainCar(vec![-std::f64::consts::FRAC_PI_6, 0.5]);
        let svg = episodes("one", &[("after", &course)]);
        assert!(svg.contains("after: 1 steps"));
        assert!(svg.contains("values=\"165.3 170.0;415.6 "), "{svg}");
        let turns: Vec<&str> = svg.split("type=\"rotate\"").collect();
        assert!(
            turns[1].contains("values=\"-0.0;-") || turns[1].contains("values=\"0.0;-"),
            "{svg}"
        );
    }
}
