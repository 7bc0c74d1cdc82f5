//! Plots as SVG text, by plotters.
//!
//! Made for a page in two colour schemes: black is replaced by the page's own text colour there, all other colours stand out from both
//! backgrounds. No colour carries meaning alone: series have markers of their own and a name beside them, segments have their number, and the page
//! has a table of the same numbers. Every plot has a title and a description for those who do not see it.

use anyhow::{Result, anyhow};
use plotters::backend::SVGBackend;
use plotters::chart::{ChartBuilder, ChartContext};
use plotters::coord::Shift;
use plotters::coord::cartesian::Cartesian2d;
use plotters::coord::types::RangedCoordf64;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{Circle, Cross, PathElement, Polygon, Rectangle, Text, TriangleMarker};
use plotters::series::LineSeries;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{BLACK, Color, IntoFont, RGBColor, ShapeStyle, TextStyle};
use std::fmt::Display;
use std::ops::Range;

/// Each at least 3 to 1 against white and against the page's dark background.
const COLORS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 148, 108),
    RGBColor(190, 100, 155),
    RGBColor(127, 127, 127),
    RGBColor(166, 118, 29),
];
/// Behind dark text in both schemes.
const FILLS: [RGBColor; 13] = [
    RGBColor(232, 120, 50),
    RGBColor(110, 185, 235),
    RGBColor(80, 185, 150),
    RGBColor(240, 228, 66),
    RGBColor(214, 150, 186),
    RGBColor(190, 190, 190),
    RGBColor(150, 205, 110),
    RGBColor(235, 160, 150),
    RGBColor(165, 165, 225),
    RGBColor(205, 175, 125),
    RGBColor(150, 215, 215),
    RGBColor(225, 200, 235),
    RGBColor(200, 215, 160),
];
/// The page replaces black by its text colour; this stays.
const INK: RGBColor = RGBColor(17, 17, 17);
/// plotters draws letters of 1/1.24 of this.
const FONT: i32 = 16;
const WIDTH: u32 = 860;
/// Of a line of a legend, pixels.
const LINE: i32 = 22;
/// A line of more points is drawn as means of as many bins.
const MAX_POINTS: usize = 250;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Pixel = (i32, i32);

/// What stands in for a plot where it is not seen.
#[derive(Debug, Clone)]
pub struct Words {
    /// Unique on the page.
    pub id: String,
    pub title: String,
    pub description: String,
}

/// One checkpoint's values by category.
#[derive(Debug, Clone)]
pub struct Whiskers {
    pub name: String,
    /// Value, low and high end; absent where there is none.
    pub points: Vec<Option<[f64; 3]>>,
}

/// A line over steps.
#[derive(Debug, Clone)]
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// Values with intervals by category (language), series side by side.
pub fn whiskers(words: &Words, y_title: &str, categories: &[String], series: &[Whiskers], from_zero: bool) -> Result<String> {
    let ends = || series.iter().flat_map(|series| series.points.iter().flatten());
    let (low, high) = range(ends().flat_map(|point| [point[1], point[2]]));
    let y = if from_zero { 0.0..high * 1.06 + 0.5 } else { padded(low, high) };
    let legend_height = LINE * series.len() as i32 + 8;
    draw(words, (WIDTH, 320 + legend_height as u32), |root| {
        let (_, body) = root.split_vertically(legend_height);
        let mut chart = frame(&body, -0.5..categories.len() as f64 - 0.5, y.clone(), y_title, None)?;
        for (i, name) in categories.iter().enumerate() {
            let (x, bottom) = chart.backend_coord(&(i as f64, y.start));
            text(root, name, (x, bottom + 14), HPos::Center, BLACK)?;
        }
        for (index, series_of_run) in series.iter().enumerate() {
            let line = 16 + LINE * index as i32;
            marker(root, index, (76, line))?;
            text(root, &series_of_run.name, (92, line), HPos::Left, BLACK)?;
            for (category, point) in series_of_run.points.iter().enumerate() {
                let Some([value, low, high]) = *point else { continue };
                let x = category as f64 + ((index as f64 + 0.5) / series.len() as f64 - 0.5) * 0.7;
                let whisker = PathElement::new(vec![(x, low), (x, high)], color(index).stroke_width(2));
                chart.draw_series([whisker]).map_err(failed)?;
                marker(root, index, chart.backend_coord(&(x, value)))?;
            }
        }
        Ok(())
    })
}

/// Named points.
pub fn scatter(words: &Words, x_title: &str, y_title: &str, points: &[(String, f64, f64)]) -> Result<String> {
    let (x_low, x_high) = range(points.iter().map(|point| point.1));
    let (y_low, y_high) = range(points.iter().map(|point| point.2));
    draw(words, (WIDTH * 3 / 4, 340), |root| {
        let chart = frame(root, padded(x_low, x_high), padded(y_low, y_high), y_title, Some(x_title))?;
        for (name, x, y) in points {
            let (x, y) = chart.backend_coord(&(*x, *y));
            marker(root, 0, (x, y))?;
            text(root, name, (x + 10, y), HPos::Left, BLACK)?;
        }
        Ok(())
    })
}

/// Lines, each named at its end.
pub fn lines(words: &Words, x_title: &str, y_title: &str, lines: &[Line]) -> Result<String> {
    let all = || lines.iter().flat_map(|line| &line.points);
    let (x_low, x_high) = range(all().map(|point| point.0));
    let (y_low, y_high) = range(all().map(|point| point.1));
    draw(words, (WIDTH, 320), |root| {
        let (body, _) = root.split_horizontally(WIDTH as i32 - 190);
        let x = if x_high > x_low { x_low..x_high } else { padded(x_low, x_high) };
        let mut chart = frame(&body, x, padded(y_low, y_high), y_title, Some(x_title))?;
        let mut ends: Vec<(usize, Pixel)> = Vec::new();
        for (index, line) in lines.iter().enumerate() {
            let points = binned(&line.points);
            let Some(last) = points.last() else { continue };
            ends.push((index, chart.backend_coord(last)));
            chart.draw_series(LineSeries::new(points, color(index).stroke_width(2))).map_err(failed)?;
        }
        ends.sort_by_key(|(_, (_, y))| *y);
        let mut free = i32::MIN;
        for (index, (x, y)) in ends {
            marker(root, index, (x, y))?;
            // Names that would lie on each other move down, with a line to their end.
            let beside = y.max(free);
            free = beside + 16;
            root.draw(&PathElement::new(vec![(x + 6, y), (x + 16, beside)], BLACK.mix(0.4))).map_err(failed)?;
            text(root, &lines[index].name, (x + 20, beside), HPos::Left, BLACK)?;
        }
        Ok(())
    })
}

/// Bars of the same length, cut by shares: a row for each name, a segment for each kind, with its count. A kind comes with the number of its colour,
/// which is the same in all plots, whichever other kinds there are.
pub fn stacked(words: &Words, kinds: &[(String, usize)], rows: &[(String, Vec<usize>)]) -> Result<String> {
    let (left, right) = (80, WIDTH as i32 - 12);
    let columns = 3;
    let legend_height = LINE * kinds.len().div_ceil(columns) as i32 + 12;
    draw(words, (WIDTH, (legend_height + 30 * rows.len() as i32 + 8) as u32), |root| {
        for (index, (kind, fill)) in kinds.iter().enumerate() {
            let at = (left + (index % columns) as i32 * 250, 8 + LINE * (index / columns) as i32);
            segment(root, *fill, at, (at.0 + 18, at.1 + 14))?;
            text(root, kind, (at.0 + 26, at.1 + 7), HPos::Left, BLACK)?;
        }
        for (row, (name, counts)) in rows.iter().enumerate() {
            let top = legend_height + 30 * row as i32;
            text(root, name, (left - 10, top + 11), HPos::Right, BLACK)?;
            let total = counts.iter().sum::<usize>().max(1) as f64;
            let place = |n: usize| left + ((right - left) as f64 * n as f64 / total).round() as i32;
            let mut start = 0;
            for (&(_, fill), &count) in kinds.iter().zip(counts).filter(|(_, count)| **count > 0) {
                let (from, to) = (place(start), place(start + count));
                segment(root, fill, (from, top), (to, top + 22))?;
                let digits = count.to_string();
                if to - from > 10 * digits.len() as i32 + 4 {
                    text(root, &digits, ((from + to) / 2, top + 11), HPos::Center, INK)?;
                }
                start += count;
            }
        }
        Ok(())
    })
}

/// An SVG element that says what it shows. Its size follows the page.
fn draw(words: &Words, size: (u32, u32), paint: impl FnOnce(&Area) -> Result<()>) -> Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        paint(&root)?;
        root.present().map_err(failed)?;
    }
    let (_, shapes) = svg.split_once('>').ok_or_else(|| anyhow!("the plot `{}` is no SVG", words.title))?;
    let Words { id, title, description } = words;
    let (title, description) = (escaped(title), escaped(description));
    let (width, height) = size;
    Ok(format!(
        "<svg role=\"img\" aria-labelledby=\"{id}-title {id}-desc\" viewBox=\"0 0 {width} {height}\" style=\"max-width:{width}px\" \
         xmlns=\"http://www.w3.org/2000/svg\"><title id=\"{id}-title\">{title}</title><desc id=\"{id}-desc\">{description}</desc>{shapes}"
    ))
}

/// Axes, with lines across at the labels of y.
fn frame<'a, 'b>(area: &'a Area<'b>, x: Range<f64>, y: Range<f64>, y_title: &str, x_title: Option<&str>) -> Result<Chart<'a, 'b>> {
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .margin_right(24)
        .x_label_area_size(if x_title.is_some() { 44 } else { 24 })
        .y_label_area_size(66)
        .build_cartesian_2d(x, y)
        .map_err(failed)?;
    let mut mesh = chart.configure_mesh();
    mesh.disable_x_mesh()
        .bold_line_style(BLACK.mix(0.15))
        .light_line_style(BLACK.mix(0.0))
        .axis_style(BLACK.mix(0.5))
        .label_style(("sans-serif", FONT))
        .axis_desc_style(("sans-serif", FONT))
        .y_labels(6)
        .y_label_formatter(&|y| tick(*y))
        .x_label_formatter(&|x| tick(*x))
        .y_desc(y_title);
    match x_title {
        Some(title) => mesh.x_desc(title).x_labels(8),
        None => mesh.disable_x_axis(),
    };
    mesh.draw().map_err(failed)?;
    drop(mesh);
    Ok(chart)
}

/// As many decimals as it needs, three at most.
fn tick(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn text(area: &Area, text: &str, at: Pixel, side: HPos, color: RGBColor) -> Result<()> {
    let style = TextStyle::from(("sans-serif", FONT).into_font()).color(&color).pos(Pos::new(side, VPos::Center));
    area.draw(&Text::new(text.to_owned(), at, style)).map_err(failed)
}

/// Each series has a shape of its own.
fn marker(area: &Area, index: usize, (x, y): Pixel) -> Result<()> {
    let style = color(index).filled();
    match index % COLORS.len() {
        0 => area.draw(&Circle::new((x, y), 5, style)),
        1 => area.draw(&TriangleMarker::new((x, y), 7, style)),
        2 => area.draw(&Rectangle::new([(x - 4, y - 4), (x + 4, y + 4)], style)),
        3 => area.draw(&Polygon::new(vec![(x, y - 6), (x + 6, y), (x, y + 6), (x - 6, y)], style)),
        4 => area.draw(&Cross::new((x, y), 5, color(index).stroke_width(2))),
        _ => area.draw(&Circle::new((x, y), 5, color(index).stroke_width(2))),
    }
    .map_err(failed)
}

fn segment(area: &Area, fill: usize, from: Pixel, to: Pixel) -> Result<()> {
    area.draw(&Rectangle::new([from, to], FILLS[fill % FILLS.len()].filled())).map_err(failed)?;
    area.draw(&Rectangle::new([from, to], ShapeStyle { color: INK.to_rgba(), filled: false, stroke_width: 1 })).map_err(failed)
}

fn color(index: usize) -> RGBColor {
    COLORS[index % COLORS.len()]
}

/// Smallest and largest; 0 and 1 of nothing.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if low <= high { (low, high) } else { (0.0, 1.0) }
}

/// With room at both ends, also around a single value.
fn padded(low: f64, high: f64) -> Range<f64> {
    let room = if high > low { 0.08 * (high - low) } else { 0.1 * high.abs().max(0.1) };
    low - room..high + room
}

/// Means of consecutive points, where there are too many to see.
fn binned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let bin = points.len().div_ceil(MAX_POINTS).max(1);
    let mean = |points: &[(f64, f64)], of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / points.len() as f64;
    points.chunks(bin).map(|points| (mean(points, |point| point.0), mean(points, |point| point.1))).collect()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn failed(error: impl Display) -> anyhow::Error {
    anyhow!("cannot draw a plot: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words() -> Words {
        Words { id: "p1".into(), title: "A <title>".into(), description: "Values & ends".into() }
    }

    #[test]
    fn a_plot_says_what_it_shows_and_escapes_it() {
        let point = |value| Some([value, value - 1.0, value + 1.0]);
        let series = [Whiskers { name: "<script>base</script>".into(), points: vec![point(3.0), None] }];
        let svg = whiskers(&words(), "%", &["sw".into(), "bn".into()], &series, true).unwrap();
        assert!(svg.starts_with("<svg role=\"img\" aria-labelledby=\"p1-title p1-desc\"") && svg.trim_end().ends_with("</svg>"), "{svg}");
        assert!(svg.contains("<title id=\"p1-title\">A &lt;title&gt;</title>") && svg.contains("Values &amp; ends"), "{svg}");
        assert!(!svg.contains("<script") && svg.contains("&lt;script&gt;base"), "{svg}");
        // One value: one marker in the plot, one in the legend.
        assert_eq!(svg.matches("<circle").count(), 2);
    }

    #[test]
    fn segments_are_as_long_as_their_shares() {
        let svg =
            stacked(&words(), &[("unsafe".into(), 0), ("refusal".into(), 1)], &[("sw".into(), vec![30, 10]), ("bn".into(), vec![0, 0])])
                .unwrap();
        let widths: Vec<i32> = svg
            .lines()
            .filter(|line| line.starts_with("<rect") && line.contains("height=\"22\"") && line.contains("stroke=\"none\""))
            .map(|line| line.split("width=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(widths.len(), 2, "{svg}");
        assert!((f64::from(widths[0]) / f64::from(widths[1]) - 3.0).abs() < 0.02, "{widths:?}");
    }

    #[test]
    fn degenerate_data_draws_something() {
        for svg in [
            scatter(&words(), "x", "y", &[("sw".into(), 1.0, 0.0)]).unwrap(),
            scatter(&words(), "x", "y", &[]).unwrap(),
            lines(&words(), "step", "loss", &[Line { name: "loss".into(), points: vec![(1.0, 2.0)] }]).unwrap(),
            whiskers(&words(), "%", &[], &[], true).unwrap(),
            stacked(&words(), &[], &[]).unwrap(),
        ] {
            assert!(svg.contains("<title") && !svg.contains("NaN"), "{svg}");
        }
    }

    #[test]
    fn ticks_have_no_more_digits_than_they_need() {
        assert_eq!([60.0, 0.25, 0.0, -1.5].map(tick), ["60", "0.25", "0", "-1.5"]);
    }

    #[test]
    fn long_lines_are_thinned_to_means() {
        let points: Vec<(f64, f64)> = (0..1000).map(|i| (f64::from(i), f64::from(i % 4))).collect();
        let thin = binned(&points);
        assert_eq!((thin.len(), thin[0]), (250, (1.5, 1.5)));
        assert_eq!(binned(&points[..10]), points[..10]);
    }
}
