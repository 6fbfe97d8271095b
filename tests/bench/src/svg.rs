//! Small plots as SVG: lines over a logarithmic axis, and groups of bars. No script, no font but the reader's.

use std::fmt::Write as _;

/// Width and height of a plot, and its margins.
const SIZE: (f64, f64) = (760.0, 380.0);
const LEFT: f64 = 70.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// Told apart by most eyes (Okabe and Ito 2008).
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555"];

/// A named row of points or bars.
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Lines; the x axis is logarithmic, the y axis begins at 0 unless it is logarithmic too.
pub(crate) fn lines(title: &str, x: &str, y: &str, y_logarithmic: bool, series: &[Series]) -> String {
    let points =
        || series.iter().flat_map(|one| one.points.iter()).filter(|p| p.0 > 0.0 && (!y_logarithmic || p.1 > 0.0));
    let across = Axis::new(points().map(|point| point.0), true);
    let up = Axis::new(points().map(|point| point.1), y_logarithmic);
    let mut svg = frame(title, x, y);
    let (width, height) = inner();
    for tick in across.ticks() {
        let at = LEFT + width * across.share(tick);
        let _ = write!(
            svg,
            r##"<line x1="{at:.1}" y1="{TOP}" x2="{at:.1}" y2="{:.1}" stroke="#ddd"/><text x="{at:.1}" y="{:.1}" text-anchor="middle">{}</text>"##,
            TOP + height,
            TOP + height + 16.0,
            number(tick)
        );
    }
    draw_rules(&mut svg, &up);
    for (ix, one) in series.iter().enumerate() {
        let colour = COLOURS[ix % COLOURS.len()];
        let mut sorted: Vec<(f64, f64)> =
            one.points.iter().copied().filter(|p| p.0 > 0.0 && (!y_logarithmic || p.1 > 0.0)).collect();
        sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
        let position = |p: &(f64, f64)| (LEFT + width * across.share(p.0), TOP + height * (1.0 - up.share(p.1)));
        let path: Vec<String> = sorted.iter().map(|p| format!("{:.1},{:.1}", position(p).0, position(p).1)).collect();
        let _ =
            write!(svg, r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#, path.join(" "));
        for point in &sorted {
            let (cx, cy) = position(point);
            let _ = write!(svg, r#"<circle cx="{cx:.1}" cy="{cy:.1}" r="2.5" fill="{colour}"/>"#);
        }
    }
    legend(&mut svg, series.iter().map(|one| one.name.as_str()));
    svg + "</svg>\n"
}

/// For each group a bar of every series; a point's x is the number of its group.
pub(crate) fn bars(title: &str, y: &str, groups: &[String], series: &[Series]) -> String {
    let up = Axis::new(series.iter().flat_map(|one| one.points.iter().map(|point| point.1)), false);
    let mut svg = frame(title, "", y);
    let (width, height) = inner();
    draw_rules(&mut svg, &up);
    let group = width / groups.len().max(1) as f64;
    let bar = group * 0.8 / series.len().max(1) as f64;
    for (ix, name) in groups.iter().enumerate() {
        let at = LEFT + group * (ix as f64 + 0.5);
        let below = TOP + height + 16.0;
        let _ = write!(svg, r#"<text x="{at:.1}" y="{below:.1}" text-anchor="middle">{}</text>"#, escape(name));
    }
    for (ix, one) in series.iter().enumerate() {
        for (at, value) in &one.points {
            let high = height * up.share(*value);
            let _ = write!(
                svg,
                r#"<rect x="{:.1}" y="{:.1}" width="{:.1}" height="{high:.1}" fill="{}"/>"#,
                LEFT + group * (at + 0.1) + bar * ix as f64,
                TOP + height - high,
                bar * 0.92,
                COLOURS[ix % COLOURS.len()]
            );
        }
    }
    legend(&mut svg, series.iter().map(|one| one.name.as_str()));
    svg + "</svg>\n"
}

fn inner() -> (f64, f64) {
    (SIZE.0 - LEFT - RIGHT, SIZE.1 - TOP - BOTTOM)
}

struct Axis {
    from: f64,
    to: f64,
    logarithmic: bool,
}

impl Axis {
    fn new(values: impl Iterator<Item = f64>, logarithmic: bool) -> Self {
        let (mut least, mut most) = (f64::INFINITY, 0.0_f64);
        for value in values.filter(|value| value.is_finite()) {
            least = least.min(value);
            most = most.max(value);
        }
        if least > most || most <= 0.0 {
            (least, most) = (1.0, 1.0);
        }
        match logarithmic {
            true => Self { from: least / 1.1, to: most * 1.1, logarithmic },
            false => Self { from: 0.0, to: most * 1.05, logarithmic },
        }
    }

    /// The position of a value on the axis, from 0 to 1.
    fn share(&self, value: f64) -> f64 {
        let share = if self.logarithmic {
            (value / self.from).ln() / (self.to / self.from).ln()
        } else {
            (value - self.from) / (self.to - self.from)
        };
        share.clamp(0.0, 1.0)
    }

    fn ticks(&self) -> Vec<f64> {
        if self.logarithmic {
            let powers = (self.from.log10().floor() as i32)..=(self.to.log10().ceil() as i32);
            let all = powers.flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(power)));
            return all.filter(|tick| (self.from..=self.to).contains(tick)).collect();
        }
        let rough = self.to / 5.0;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power).into_iter().find(|s| *s >= rough).unwrap_or(rough);
        (0..=5).map(|count| f64::from(count) * step).filter(|tick| *tick <= self.to).collect()
    }
}

fn frame(title: &str, x: &str, y: &str) -> String {
    let (width, height) = inner();
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" font-family="sans-serif" font-size="12">"#,
        SIZE.0, SIZE.1
    );
    let _ = write!(
        svg,
        r#"<rect width="100%" height="100%" fill="white"/><text x="{LEFT}" y="22" font-size="15">{}</text>"#,
        escape(title)
    );
    let _ = write!(
        svg,
        r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
        LEFT + width / 2.0,
        SIZE.1 - 12.0,
        escape(x)
    );
    let middle = TOP + height / 2.0;
    let _ = write!(
        svg,
        r#"<text x="16" y="{middle:.1}" text-anchor="middle" transform="rotate(-90 16 {middle:.1})">{}</text>"#,
        escape(y)
    );
    svg
}

fn draw_rules(svg: &mut String, up: &Axis) {
    let (width, height) = inner();
    for tick in up.ticks() {
        let at = TOP + height * (1.0 - up.share(tick));
        let _ = write!(
            svg,
            r##"<line x1="{LEFT}" y1="{at:.1}" x2="{:.1}" y2="{at:.1}" stroke="#ddd"/><text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"##,
            LEFT + width,
            LEFT - 6.0,
            at + 4.0,
            number(tick)
        );
    }
}

fn legend<'a>(svg: &mut String, names: impl Iterator<Item = &'a str>) {
    let x = SIZE.0 - RIGHT + 14.0;
    for (ix, name) in names.enumerate() {
        let y = TOP + 8.0 + 20.0 * ix as f64;
        let colour = COLOURS[ix % COLOURS.len()];
        let _ = write!(
            svg,
            r#"<rect x="{x}" y="{:.1}" width="12" height="12" fill="{colour}"/><text x="{}" y="{:.1}">{}</text>"#,
            y - 6.0,
            x + 18.0,
            y + 4.0,
            escape(name)
        );
    }
}

fn number(value: f64) -> String {
    match value {
        v if v >= 10_000.0 => format!("{}k", v / 1_000.0),
        v if v >= 10.0 || v == v.trunc() => format!("{v:.0}"),
        v => format!("{v:.1}"),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plots_contain_all_points_within_their_frame() {
        let series = || {
            let points = vec![(1.0, 10.0), (64.0, 900.0), (512.0, 700.0)];
            vec![Series { name: "a < b".to_owned(), points }, Series { name: "none".to_owned(), points: vec![] }]
        };
        let svg = lines("t", "x", "y", true, &series());
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains("a &lt; b") && svg.ends_with("</svg>\n") && !svg.contains("NaN") && !svg.contains("inf"));
        let groups = ["1".to_owned(), "64".to_owned()];
        let bars = bars("t", "y", &groups, &[Series { name: "a".to_owned(), points: vec![(0.0, 3.0), (1.0, 0.0)] }]);
        assert_eq!(bars.matches("<rect").count(), 4, "the ground, two bars, one mark in the legend");
        assert!(!lines("t", "x", "y", false, &[]).contains("NaN"));
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(Axis::new([937.0].into_iter(), false).ticks(), [0.0, 200.0, 400.0, 600.0, 800.0]);
        assert_eq!(
            Axis::new([1.0, 512.0].into_iter(), true).ticks(),
            [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0]
        );
    }
}
