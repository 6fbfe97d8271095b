//! Renders lines of a terminal with their times as an animated SVG, whose lines appear one after the other.

use std::fmt::Write as _;
use std::time::Duration;

/// How many times slower than the run the picture is played.
const SLOWER: u32 = 10;
/// Most columns of a line.
const COLUMNS: usize = 100;
/// The size of a character, in pixels.
const CHARACTER: (f64, f64) = (7.8, 18.0);
/// The space around the lines, in pixels.
const MARGIN: f64 = 20.0;
/// The height of the bar with the title, in pixels.
const BAR: f64 = 34.0;

const STYLE: &str = "\
text{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;fill:#c9d1d9;white-space:pre}\
.t{fill:#8b949e}.p{fill:#7ee787}.n{fill:#ff7b72}\
.r{animation:show .1s linear backwards}@keyframes show{from,50%{opacity:0}}\
@media (prefers-reduced-motion:reduce){.r{animation:none}}";

/// The picture of `rows`, each with its time since the first; the title stands above them.
pub(super) fn svg(title: &str, rows: &[(Duration, String)]) -> String {
    let width = COLUMNS as f64 * CHARACTER.0 + 2.0 * MARGIN;
    let height = BAR + rows.len() as f64 * CHARACTER.1 + 2.0 * MARGIN;
    let title = format!("{title}  (played {SLOWER} times slower)");
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" role=\"img\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#0d1117\"/>\n\
         <rect width=\"100%\" height=\"{BAR}\" rx=\"8\" fill=\"#161b22\"/>\n\
         <text class=\"t\" x=\"{MARGIN}\" y=\"22\">{title}</text>\n",
        title = escape(&title),
    );
    for (number, (after, row)) in rows.iter().enumerate() {
        let y = BAR + MARGIN + (number as f64 + 0.7) * CHARACTER.1;
        let delay = after.as_secs_f64() * f64::from(SLOWER);
        let colour = ["POSITIVE", "NEGATIVE"].iter().position(|label| row.contains(label));
        let class = colour.map_or("r", |label| ["r p", "r n"][label]);
        let text: String = row.chars().take(COLUMNS).collect();
        writeln!(
            svg,
            "<text class=\"{class}\" style=\"animation-delay:{delay:.2}s\" x=\"{MARGIN}\" y=\"{y:.1}\" \
             xml:space=\"preserve\">{}</text>",
            escape(&text)
        )
        .expect("a String takes everything");
    }
    svg.push_str("</svg>\n");
    svg
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_appear_in_their_order_and_time() {
        let rows = [
            (Duration::from_millis(5), "  5.0 ms  started".to_owned()),
            (Duration::from_millis(250), "250.0 ms  POSITIVE <&>".to_owned()),
        ];
        let svg = svg("demo", &rows);
        let first = svg.find("class=\"r\" style=\"animation-delay:0.05s\"").unwrap();
        let second = svg.find("class=\"r p\" style=\"animation-delay:2.50s\"").unwrap();
        assert!(first < second);
        assert!(svg.contains(">  5.0 ms  started</text>") && svg.contains("POSITIVE &lt;&amp;&gt;</text>"));
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    }
}
