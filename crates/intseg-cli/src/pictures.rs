//! The demo's pictures: rows of input, truth and prediction, and the curves of a run.

use anyhow::{Context, anyhow};
use intseg::data::image::{Rgb, write_atomically};
use plotters::prelude::*;
use std::path::Path;

/// Pixels between tiles.
const GAP: usize = 6;

/// Tiles of one size in rows and columns on white, each pixel enlarged `zoom` times.
///
/// # Panics
/// When there are no tiles, or rows or sizes differ.
pub fn mosaic(rows: &[Vec<Rgb>], zoom: usize) -> Rgb {
    let (tile_w, tile_h) = (rows[0][0].width * zoom, rows[0][0].height * zoom);
    let width = rows[0].len() * (tile_w + GAP) + GAP;
    let height = rows.len() * (tile_h + GAP) + GAP;
    let mut picture = Rgb { width, height, data: vec![255; 3 * width * height] };
    for (row, tiles) in rows.iter().enumerate() {
        for (column, tile) in tiles.iter().enumerate() {
            let (top, left) = (GAP + row * (tile_h + GAP), GAP + column * (tile_w + GAP));
            for y in 0..tile_h {
                for x in 0..tile_w {
                    let from = 3 * (y / zoom * tile.width + x / zoom);
                    let to = 3 * ((top + y) * width + left + x);
                    picture.data[to..to + 3].copy_from_slice(&tile.data[from..from + 3]);
                }
            }
        }
    }
    picture
}

/// Writes an SVG with the loss (left axis) and the mIoU (right axis, 0 to 1) over the steps.
///
/// # Errors
/// When the file cannot be written.
pub fn curve(path: &Path, loss: &[(u64, f64)], miou: &[(u64, f64)]) -> anyhow::Result<()> {
    let mut text = String::new();
    draw(&mut text, loss, miou).map_err(|e| anyhow!("cannot draw the curve: {e}"))?;
    write_atomically(path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

fn draw(text: &mut String, loss: &[(u64, f64)], miou: &[(u64, f64)]) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(text, (800, 400)).into_drawing_area();
    root.fill(&WHITE)?;
    let steps = loss.iter().chain(miou).map(|(step, _)| *step).max().unwrap_or(1).max(1);
    let top = loss.iter().map(|(_, loss)| *loss).fold(0.1, f64::max) * 1.05;
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .right_y_label_area_size(56)
        .build_cartesian_2d(0..steps, 0.0..top)?
        .set_secondary_coord(0..steps, 0.0..1.0);
    chart.configure_mesh().light_line_style(WHITE).x_desc("step").y_desc("loss").draw()?;
    chart.configure_secondary_axes().y_desc("mIoU").draw()?;
    chart
        .draw_series(LineSeries::new(loss.iter().copied(), BLUE.stroke_width(2)))?
        .label("loss")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], BLUE.stroke_width(2)));
    chart
        .draw_secondary_series(LineSeries::new(miou.iter().copied(), RED.stroke_width(2)).point_size(3))?
        .label("mIoU of the integer model on scenes it does not train on")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], RED.stroke_width(2)));
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .position(SeriesLabelPosition::MiddleRight)
        .draw()?;
    root.present()?;
    Ok(())
}

/// Means over windows of `width` values, each at its window's last step.
pub fn smooth(values: &[(u64, f64)], width: usize) -> Vec<(u64, f64)> {
    let mean = |window: &[(u64, f64)]| window.iter().map(|(_, v)| v).sum::<f64>() / window.len() as f64;
    values.chunks(width.max(1)).filter_map(|window| Some((window.last()?.0, mean(window)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_stand_side_by_side() {
        let tile = |value| Rgb { width: 1, height: 1, data: vec![value; 3] };
        let picture = mosaic(&[vec![tile(1), tile(2)], vec![tile(3), tile(4)]], 2);
        assert_eq!((picture.width, picture.height), (22, 22));
        let at = |x: usize, y: usize| picture.data[3 * (y * 22 + x)];
        assert_eq!([at(0, 0), at(6, 6), at(7, 7), at(14, 6), at(6, 14), at(15, 15)], [255, 1, 1, 2, 3, 4]);
    }

    #[test]
    fn the_curve_is_an_svg_with_both_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("curve.svg");
        curve(&path, &smooth(&[(1, 2.0), (2, 1.0), (3, 0.5)], 2), &[(2, 0.3), (3, 0.6)]).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.starts_with("<svg") && text.contains("mIoU") && text.matches("<polyline").count() >= 2);
    }
}
