//! Decoding and writing images and label maps.

use super::DataError;
use std::io::Write;
use std::path::Path;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

/// The largest width or height that is read.
pub const MAX_SIDE: usize = 32_768;
/// The largest number of pixels that is read: 400 MB of RGB.
pub const MAX_PIXELS: usize = 1 << 27;

/// Refuses a size that a small file may claim to exhaust memory.
fn check_size(width: usize, height: usize) -> Result<(), String> {
    if width.max(height) > MAX_SIDE {
        return Err(format!("{width}×{height} is more than {MAX_SIDE} pixels a side; scale it down"));
    }
    match width * height > MAX_PIXELS {
        true => Err(format!("{width}×{height} is more than {MAX_PIXELS} pixels; scale it down")),
        false => Ok(()),
    }
}

/// An image, 8 bits a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[H, W, 3]`.
    pub data: Vec<u8>,
}

/// A label map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[H, W]`.
    pub values: Vec<u8>,
}

fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    std::fs::read(path).map_err(|source| DataError::Io { path: path.to_owned(), source })
}

/// Reads a JPEG or PNG image, by its content.
///
/// # Errors
/// When the file cannot be read or decoded, is truncated, or has 16 bits a channel.
pub fn read_rgb(path: &Path) -> Result<Rgb, DataError> {
    let bytes = read(path)?;
    let decoded = if bytes.starts_with(&[0xFF, 0xD8]) { decode_jpeg(bytes) } else { decode_png_rgb(&bytes) };
    decoded.map_err(|message| DataError::Decode { path: path.to_owned(), message })
}

fn decode_jpeg(bytes: Vec<u8>) -> Result<Rgb, String> {
    // The decoder fills what a truncated file lacks with grey.
    if !reaches_jpeg_end(&bytes) {
        return Err("the JPEG is truncated: its end marker is missing; fetch the file again".into());
    }
    let options = DecoderOptions::default()
        .jpeg_set_out_colorspace(ColorSpace::RGB)
        .set_strict_mode(true)
        .set_max_width(MAX_SIDE)
        .set_max_height(MAX_SIDE);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|e| format!("{e:?}"))?;
    let (width, height) = decoder.dimensions().ok_or("no dimensions")?;
    check_size(width, height)?;
    let data = decoder.decode().map_err(|e| format!("{e:?}"))?;
    match data.len() == width * height * 3 {
        true => Ok(Rgb { width, height, data }),
        false => Err("not three channels of 8 bits".into()),
    }
}

/// Whether the markers of a JPEG lead to its end marker.
///
/// Looking at the last bytes alone would refuse photographs with a trailer, which cameras append, and looking for the
/// marker anywhere would find that of an embedded thumbnail.
fn reaches_jpeg_end(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        // Entropy-coded data and fill bytes lie between markers; FF 00 is a data byte.
        let Some(found) = bytes.get(at..).and_then(|rest| rest.windows(2).position(|w| w[0] == 0xFF && w[1] != 0))
        else {
            return false;
        };
        at += found;
        match bytes[at + 1] {
            0xD9 => return true,
            // A fill byte, which belongs to the marker after it.
            0xFF => at += 1,
            // Markers without a segment: restarts and their like.
            0x01 | 0xD0..=0xD8 => at += 2,
            _ => match bytes.get(at + 2..at + 4) {
                Some(length) => at += 2 + usize::from(u16::from_be_bytes([length[0], length[1]])),
                None => return false,
            },
        }
    }
}

/// Decodes a PNG as it is stored: width, height, bit depth, colour type, rows without padding.
fn decode_png(bytes: &[u8], expand: bool) -> Result<(png::OutputInfo, Vec<u8>), String> {
    let mut decoder = png::Decoder::new(std::io::Cursor::new(bytes));
    decoder.set_transformations(if expand { png::Transformations::EXPAND } else { png::Transformations::IDENTITY });
    let mut reader = decoder.read_info().map_err(|e| e.to_string())?;
    let info = reader.info();
    check_size(info.width as usize, info.height as usize)?;
    let size = reader.output_buffer_size().ok_or("too large")?;
    let mut data = vec![0; size];
    let info = reader.next_frame(&mut data).map_err(|e| e.to_string())?;
    data.truncate(info.buffer_size());
    Ok((info, data))
}

fn decode_png_rgb(bytes: &[u8]) -> Result<Rgb, String> {
    if !bytes.starts_with(b"\x89PNG") {
        return Err("neither a JPEG nor a PNG".into());
    }
    let (info, data) = decode_png(bytes, true)?;
    if info.bit_depth == png::BitDepth::Sixteen {
        return Err("16 bits a channel; save it with 8".into());
    }
    let data = match info.color_type {
        png::ColorType::Rgb => data,
        png::ColorType::Rgba => data.as_chunks::<4>().0.iter().flat_map(|p| [p[0], p[1], p[2]]).collect(),
        png::ColorType::Grayscale => data.into_iter().flat_map(|v| [v; 3]).collect(),
        png::ColorType::GrayscaleAlpha => data.as_chunks::<2>().0.iter().flat_map(|p| [p[0]; 3]).collect(),
        png::ColorType::Indexed => return Err("a palette that did not expand".into()),
    };
    Ok(Rgb { width: info.width as usize, height: info.height as usize, data })
}

/// Reads a label map: the index of an indexed PNG, or the value of a grey one.
///
/// # Errors
/// When the file cannot be read or decoded, or is not one 8-bit index a pixel.
pub fn read_label(path: &Path) -> Result<Label, DataError> {
    let bytes = read(path)?;
    let (info, data) =
        decode_png(&bytes, false).map_err(|message| DataError::Decode { path: path.to_owned(), message })?;
    let depth = info.bit_depth as u8;
    let (width, height) = (info.width as usize, info.height as usize);
    let values = match (info.color_type, depth) {
        (png::ColorType::Indexed | png::ColorType::Grayscale, 8) => data,
        // Few classes are often stored with fewer bits.
        (png::ColorType::Indexed, 1 | 2 | 4) => unpack(&data, depth.into(), width, height),
        (kind, depth) => {
            let found = format!("{kind:?} with {depth} bits");
            return Err(DataError::LabelFormat { path: path.to_owned(), found });
        }
    };
    Ok(Label { width, height, values })
}

fn unpack(data: &[u8], depth: usize, width: usize, height: usize) -> Vec<u8> {
    let row = (width * depth).div_ceil(8);
    let mask = ((1u16 << depth) - 1) as u8;
    let at = |y: usize, x: usize| data[y * row + x * depth / 8] >> (8 - depth - x * depth % 8) & mask;
    (0..height).flat_map(|y| (0..width).map(move |x| (y, x))).map(|(y, x)| at(y, x)).collect()
}

/// Writes a file under a temporary name in the same folder, syncs it and renames it: a reader never sees half of it,
/// and what was there before stays until the new one is whole.
///
/// # Errors
/// When the folder cannot be written to or is full.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    let fail = |source| DataError::Io { path: path.to_owned(), source };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".intseg-").suffix(".partial");
    // Temporary files are private by default; results are as readable as the user's mask says.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(dir).map_err(fail)?;
    file.write_all(bytes).map_err(fail)?;
    file.as_file().sync_all().map_err(fail)?;
    file.persist(path).map_err(|e| fail(e.error))?;
    Ok(())
}

fn encode_png(
    width: usize,
    height: usize,
    colour: png::ColorType,
    palette: Option<Vec<u8>>,
    data: &[u8],
) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width as u32, height as u32);
    encoder.set_color(colour);
    encoder.set_depth(png::BitDepth::Eight);
    if let Some(palette) = palette {
        encoder.set_palette(palette);
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(data)?;
    writer.finish()?;
    Ok(bytes)
}

fn write_png(
    path: &Path,
    size: [usize; 2],
    colour: png::ColorType,
    palette: Option<Vec<u8>>,
    data: &[u8],
) -> Result<(), DataError> {
    let bytes = encode_png(size[0], size[1], colour, palette, data)
        .map_err(|e| DataError::Decode { path: path.to_owned(), message: e.to_string() })?;
    write_atomically(path, &bytes)
}

/// Writes a label map as an indexed PNG. Values without a colour, [`super::IGNORE`] among them, show as light grey.
///
/// # Errors
/// When the file cannot be written.
pub fn write_label(path: &Path, label: &Label, palette: &[[u8; 3]]) -> Result<(), DataError> {
    let mut colours = vec![[224u8; 3]; 256];
    colours[..palette.len().min(256)].copy_from_slice(&palette[..palette.len().min(256)]);
    write_png(path, [label.width, label.height], png::ColorType::Indexed, Some(colours.concat()), &label.values)
}

/// Writes an RGB PNG.
///
/// # Errors
/// When the file cannot be written.
pub fn write_rgb(path: &Path, image: &Rgb) -> Result<(), DataError> {
    write_png(path, [image.width, image.height], png::ColorType::Rgb, None, &image.data)
}

/// The label map in its colours; values without a colour are light grey.
pub fn colourize(label: &Label, palette: &[[u8; 3]]) -> Rgb {
    let data = label.values.iter().flat_map(|&v| *palette.get(usize::from(v)).unwrap_or(&[224; 3])).collect();
    Rgb { width: label.width, height: label.height, data }
}

/// The image with the label map's colours over it, half and half.
///
/// # Panics
/// When the sizes differ.
pub fn overlay(image: &Rgb, label: &Label, palette: &[[u8; 3]]) -> Rgb {
    let colours = colourize(label, palette);
    assert_eq!(image.data.len(), colours.data.len(), "the sizes must be equal");
    let data = image.data.iter().zip(&colours.data).map(|(&a, &b)| ((u16::from(a) + u16::from(b)) / 2) as u8).collect();
    Rgb { data, ..*image }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_maps_and_images_survive_a_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let label = Label { width: 3, height: 2, values: vec![0, 1, 2, 255, 7, 0] };
        let path = dir.path().join("a.png");
        write_label(&path, &label, &super::super::palette::voc(8)).unwrap();
        assert_eq!(read_label(&path).unwrap(), label);
        let image = Rgb { width: 2, height: 1, data: vec![1, 2, 3, 4, 5, 6] };
        write_rgb(&path, &image).unwrap();
        assert_eq!(read_rgb(&path).unwrap(), image);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn label_maps_with_fewer_bits_are_unpacked() {
        assert_eq!(unpack(&[0b0110_1100, 0b1000_0000, 0b1101_0000, 0], 2, 5, 2), [1, 2, 3, 0, 2, 3, 1, 0, 0, 0]);
    }

    #[test]
    fn rgb_and_16_bit_label_maps_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("label.png");
        write_rgb(&path, &Rgb { width: 1, height: 1, data: vec![1, 2, 3] }).unwrap();
        let message = read_label(&path).unwrap_err().to_string();
        assert!(message.contains("label.png") && message.contains("Rgb with 8 bits"), "{message}");
    }
}
