//! Data sets on disk, good and bad, through the public interface.

use intseg::data::image::{Label, Rgb, read_label, read_rgb, write_label, write_rgb};
use intseg::data::{Dataset, IGNORE, Layout};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A baseline JPEG of one 8×8 block a component in which every coefficient is 0, so every sample is 128. `comment` goes
/// into a segment before the pixels, as thumbnails do.
fn jpeg(components: u8, comment: &[u8]) -> Vec<u8> {
    let segment = |marker: u8, body: &[u8]| {
        let length = (body.len() as u16 + 2).to_be_bytes();
        [&[0xFF, marker], &length[..], body].concat()
    };
    let frame: Vec<u8> = (1..=components).flat_map(|id| [id, 0x11, 0]).collect();
    let scan: Vec<u8> = (1..=components).flat_map(|id| [id, 0]).collect();
    // One code of one bit, for "difference 0" and for "end of block".
    let code = |class: u8| [&[class, 1][..], &[0; 15], &[0]].concat();
    [
        vec![0xFF, 0xD8],
        segment(0xE1, comment),
        segment(0xDB, &[&[0][..], &[1; 64]].concat()),
        segment(0xC0, &[&[8, 0, 8, 0, 8, components][..], &frame].concat()),
        segment(0xC4, &code(0x00)),
        segment(0xC4, &code(0x10)),
        segment(0xDA, &[&[components][..], &scan, &[0, 63, 0]].concat()),
        // Two zero bits a component, then ones.
        vec![(0xFFu32 >> (2 * components)) as u8],
        vec![0xFF, 0xD9],
    ]
    .concat()
}

fn png(width: u32, height: u32, colour: png::ColorType, depth: png::BitDepth, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(colour);
    encoder.set_depth(depth);
    if colour == png::ColorType::Indexed {
        encoder.set_palette(vec![9, 8, 7, 6, 5, 4]);
    }
    encoder.write_header().unwrap().write_image_data(data).unwrap();
    bytes
}

fn written(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

fn grey(path: &Path, size: [usize; 2]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    write_rgb(path, &Rgb { width: size[0], height: size[1], data: vec![128; 3 * size[0] * size[1]] }).unwrap();
}

fn labels(path: &Path, size: [usize; 2], value: u8) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    write_label(path, &Label { width: size[0], height: size[1], values: vec![value; size[0] * size[1]] }, &[]).unwrap();
}

/// A data set in VOC's layout of one image and one label map.
fn voc(dir: &Path, image: [usize; 2], label: [usize; 2], value: u8) -> Dataset {
    grey(&dir.join("JPEGImages/a.png"), image);
    labels(&dir.join("SegmentationClass/a.png"), label, value);
    written(dir, "ImageSets/Segmentation/train.txt", b"a\n");
    Dataset::open(dir, None).unwrap()
}

/// Checks that a message names all of `parts`.
fn names(message: impl ToString, parts: &[&str]) {
    let message = message.to_string();
    parts.iter().for_each(|part| assert!(message.contains(part), "{part:?} is not in: {message}"));
}

#[test]
fn jpegs_of_one_three_and_four_components_decode_to_rgb() {
    let dir = tempfile::tempdir().unwrap();
    for components in [1, 3, 4] {
        let image = read_rgb(&written(dir.path(), "a.jpg", &jpeg(components, b""))).unwrap();
        assert_eq!([image.width, image.height, image.data.len()], [8, 8, 3 * 64], "{components} components");
        assert!(components == 4 || image.data.iter().all(|&v| v == 128), "{components} components");
    }
}

#[test]
fn a_jpeg_cut_at_any_byte_is_refused_by_name_even_with_a_thumbnail_inside() {
    let dir = tempfile::tempdir().unwrap();
    let whole = jpeg(3, &jpeg(1, b""));
    assert!(read_rgb(&written(dir.path(), "a.jpg", &whole)).is_ok());
    for length in 0..whole.len() {
        names(read_rgb(&written(dir.path(), "cut.jpg", &whole[..length])).unwrap_err(), &["cut.jpg"]);
    }
}

#[test]
fn a_trailer_after_the_end_of_a_jpeg_is_no_fault() {
    let dir = tempfile::tempdir().unwrap();
    for trailer in [&b"\0\0\0"[..], b"SEFT camera notes \xFF\xE1"] {
        let bytes = [&jpeg(3, b"")[..], trailer].concat();
        assert_eq!(read_rgb(&written(dir.path(), "a.jpg", &bytes)).unwrap().data.len(), 3 * 64);
    }
}

#[test]
fn pngs_of_every_8_bit_kind_decode_to_rgb_and_16_bits_are_refused() {
    use png::{BitDepth, ColorType};
    let dir = tempfile::tempdir().unwrap();
    let read = |kind, depth, data: &[u8]| read_rgb(&written(dir.path(), "photo.png", &png(2, 1, kind, depth, data)));
    let pixels = |kind, data: &[u8]| read(kind, BitDepth::Eight, data).unwrap().data;
    assert_eq!(pixels(ColorType::Rgb, &[1, 2, 3, 4, 5, 6]), [1, 2, 3, 4, 5, 6]);
    assert_eq!(pixels(ColorType::Rgba, &[1, 2, 3, 0, 4, 5, 6, 255]), [1, 2, 3, 4, 5, 6]);
    assert_eq!(pixels(ColorType::Grayscale, &[1, 2]), [1, 1, 1, 2, 2, 2]);
    assert_eq!(pixels(ColorType::GrayscaleAlpha, &[1, 9, 2, 9]), [1, 1, 1, 2, 2, 2]);
    assert_eq!(pixels(ColorType::Indexed, &[1, 0]), [6, 5, 4, 9, 8, 7]);
    names(read(ColorType::Rgb, BitDepth::Sixteen, &[0; 12]).unwrap_err(), &["photo.png", "16 bits"]);
}

#[test]
fn a_png_cut_short_and_a_file_of_another_kind_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let noise: Vec<u8> = (0..3 * 64 * 64u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let whole = png(64, 64, png::ColorType::Rgb, png::BitDepth::Eight, &noise);
    for length in [0, 7, 20, 60, whole.len() / 2] {
        names(read_rgb(&written(dir.path(), "cut.png", &whole[..length])).unwrap_err(), &["cut.png"]);
        names(read_label(&written(dir.path(), "cut.png", &whole[..length])).unwrap_err(), &["cut.png"]);
    }
    names(read_rgb(&written(dir.path(), "a.jpg", b"GIF89a")).unwrap_err(), &["a.jpg", "neither a JPEG nor a PNG"]);
    names(read_rgb(&dir.path().join("none.png")).unwrap_err(), &["none.png", "No such file"]);
}

#[test]
fn label_maps_of_16_bits_or_of_colours_are_refused_with_what_they_should_be() {
    use png::{BitDepth, ColorType};
    let dir = tempfile::tempdir().unwrap();
    for (kind, depth, bytes) in [(ColorType::Grayscale, BitDepth::Sixteen, 2), (ColorType::Rgb, BitDepth::Eight, 3)] {
        let path = written(dir.path(), "label.png", &png(1, 1, kind, depth, &vec![0; bytes]));
        names(read_label(&path).unwrap_err(), &["label.png", "8-bit class index", &format!("{kind:?}")]);
    }
    // The index counts, not the colour that the palette gives it.
    let path = written(dir.path(), "label.png", &png(2, 1, ColorType::Indexed, BitDepth::Eight, &[1, 0]));
    assert_eq!(read_label(&path).unwrap().values, [1, 0]);
}

#[test]
fn sizes_from_one_pixel_to_12_000_columns_are_read_and_absurd_ones_are_refused_before_memory_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    for size in [[1, 1], [12_000, 3], [2, 9_000]] {
        let path = dir.path().join("a.png");
        grey(&path, size);
        let image = read_rgb(&path).unwrap();
        assert_eq!([image.width, image.height], size);
    }
    for [width, height] in [[40_000u32, 1u32], [30_000, 30_000]] {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, width, height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.write_header().unwrap().write_chunk(png::chunk::IDAT, &[0; 8]).unwrap();
        let claim = format!("{width}×{height}");
        names(read_rgb(&written(dir.path(), "huge.png", &bytes)).unwrap_err(), &["huge.png", &claim, "scale it down"]);
    }
    // The height and width of the frame segment follow its precision.
    let mut bytes = jpeg(3, b"");
    let frame = bytes.windows(2).position(|w| w == [0xFF, 0xC0]).unwrap();
    bytes[frame + 5..frame + 9].copy_from_slice(&[0x75, 0x30, 0x75, 0x30]);
    names(read_rgb(&written(dir.path(), "huge.jpg", &bytes)).unwrap_err(), &["huge.jpg", "30000×30000"]);
}

#[test]
fn a_label_out_of_range_names_file_value_place_and_mend() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = voc(dir.path(), [4, 3], [4, 3], 7);
    let entry = &dataset.split("train").unwrap()[0];
    assert!(dataset.read(entry, 8).is_ok());
    let parts = ["SegmentationClass/a.png", "label value 7", "column 0, row 0", "7 classes", "network.classes"];
    names(dataset.read(entry, 7).unwrap_err(), &parts);
    labels(&entry.label, [4, 3], IGNORE);
    assert!(dataset.read(entry, 2).unwrap().label.values.iter().all(|&v| v == IGNORE));
}

#[test]
fn an_image_and_a_label_map_of_different_sizes_are_refused_with_both_sizes() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = voc(dir.path(), [4, 3], [3, 4], 0);
    let error = dataset.read(&dataset.split("train").unwrap()[0], 2).unwrap_err();
    names(error, &["JPEGImages/a.png is 4×3", "SegmentationClass/a.png is 3×4"]);
}

#[test]
fn missing_folders_layouts_splits_and_files_are_each_named() {
    let dir = tempfile::tempdir().unwrap();
    names(Dataset::open(&dir.path().join("nowhere"), None).unwrap_err(), &["there is no folder", "nowhere"]);
    names(Dataset::open(dir.path(), None).unwrap_err(), &["no known layout", "JPEGImages/", "annotations/", "masks/"]);
    let dataset = voc(dir.path(), [2, 2], [2, 2], 0);
    names(Dataset::open(dir.path(), Some(Layout::Plain)).unwrap_err(), &["images/", "masks/"]);
    names(dataset.split("test").unwrap_err(), &["\"test\"", "test.txt is missing"]);
    written(dir.path(), "ImageSets/Segmentation/val.txt", b"\n");
    names(dataset.split("val").unwrap_err(), &["\"val\"", "no images"]);
    fs::remove_file(dir.path().join("SegmentationClass/a.png")).unwrap();
    names(dataset.split("train").unwrap_err(), &["SegmentationClass/a.png is missing", "list"]);
    labels(&dir.path().join("SegmentationClass/a.png"), [2, 2], 0);
    fs::remove_file(dir.path().join("JPEGImages/a.png")).unwrap();
    names(dataset.split("train").unwrap_err(), &["JPEGImages/a.", "is missing"]);
}

#[test]
fn the_augmented_list_of_voc_reads_its_own_labels_and_its_paths() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = voc(dir.path(), [2, 2], [2, 2], 1);
    labels(&dir.path().join("SegmentationClassAug/a.png"), [2, 2], 2);
    for line in ["a\n", "/JPEGImages/a.jpg /SegmentationClassAug/a.png\n"] {
        written(dir.path(), "ImageSets/Segmentation/trainaug.txt", line.as_bytes());
        let entries = dataset.split("trainaug").unwrap();
        assert_eq!(entries[0].name, "a");
        assert_eq!(dataset.read(&entries[0], 3).unwrap().label.values, [2; 4]);
    }
    assert_eq!(dataset.read(&dataset.split("train").unwrap()[0], 3).unwrap().label.values, [1; 4]);
}

#[test]
fn ade20k_counts_classes_from_one_ignores_zero_and_brings_its_names() {
    let dir = tempfile::tempdir().unwrap();
    for (folder, value) in [("training", 150), ("validation", 0)] {
        grey(&dir.path().join(format!("images/{folder}/x.png")), [2, 2]);
        labels(&dir.path().join(format!("annotations/{folder}/x.png")), [2, 2], value);
    }
    let dataset = Dataset::open(dir.path(), None).unwrap();
    assert_eq!(dataset.layout, Layout::Ade20k);
    let first = |split: &str| dataset.read(&dataset.split(split).unwrap()[0], 150).unwrap().label.values[0];
    assert_eq!((first("train"), first("val")), (149, IGNORE));
    assert!((0..=255).all(|value| Layout::Ade20k.value_of(Layout::Ade20k.class_of(value)) == value));
    assert_eq!(dataset.class_names(150)[3], "class 3");
    let rows: String = (1..=150).map(|i| format!("{i}\t0.1\t9\t9\tthing {i}, synonym\n")).collect();
    written(dir.path(), "objectInfo150.txt", format!("Idx\tRatio\tTrain\tVal\tName\n{rows}").as_bytes());
    assert_eq!(dataset.class_names(150)[3], "thing 4");
}

#[test]
fn plain_folders_split_the_same_way_every_time_unless_lists_say_how() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..60 {
        grey(&dir.path().join(format!("images/photo {i}.png")), [1, 1]);
        labels(&dir.path().join(format!("masks/photo {i}.png")), [1, 1], 0);
    }
    let dataset = Dataset::open(dir.path(), None).unwrap();
    let names = |split: &str| dataset.split(split).unwrap().into_iter().map(|e| e.name).collect::<BTreeSet<_>>();
    let (train, val) = (names("train"), names("val"));
    assert!(train.is_disjoint(&val) && train.len() + val.len() == 60 && (1..20).contains(&val.len()), "{}", val.len());
    assert_eq!(names("val"), val);
    let _ = fs::remove_file(dir.path().join("images/photo 0.png"));
    assert!(train.union(&val).filter(|n| *n != "photo 0").all(|n| names("train").contains(n) == train.contains(n)));
    written(dir.path(), "val.txt", b"photo\n");
    assert!(dataset.split("train").is_err(), "one list alone leaves the other split open");
}

#[test]
fn classes_txt_gives_names_and_colours() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = voc(dir.path(), [1, 1], [1, 1], 0);
    assert_eq!(dataset.class_names(21)[15], "person");
    assert_eq!(dataset.class_names(3)[2], "class 2");
    written(dir.path(), "classes.txt", b"sky 1 2 3\nroad\n");
    assert_eq!(dataset.class_names(2), ["sky", "road"]);
    assert_eq!(dataset.palette(2), [[1, 2, 3], [128, 0, 0]]);
    assert_eq!(dataset.listed_class_count(), Some(2));
    assert_eq!(dataset.class_names(3)[0], "class 0", "a list of another length is not for these classes");
}

#[cfg(unix)]
#[test]
fn written_files_are_as_readable_as_any_other_and_a_refused_write_leaves_the_old_file() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (path, plain) = (dir.path().join("a.png"), written(dir.path(), "plain", b""));
    grey(&path, [1, 1]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&path), mode(&plain));
    // A folder in the file's place cannot be replaced by a file.
    let taken = dir.path().join("taken.png");
    fs::create_dir(&taken).unwrap();
    let image = Rgb { width: 1, height: 1, data: vec![0; 3] };
    names(write_rgb(&taken, &image).unwrap_err(), &["taken.png"]);
    names(write_rgb(&dir.path().join("none/a.png"), &image).unwrap_err(), &["none/a.png"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "no temporary file stays");
}

/// The folder of CamVid: `INTSEG_CAMVID`, or beside the workspace.
fn camvid() -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/camvid");
    let dir = std::env::var_os("INTSEG_CAMVID").map_or_else(beside, PathBuf::from);
    dir.is_dir().then_some(dir)
}

#[test]
fn camvid_reads_as_voc_with_eleven_classes() {
    let Some(dir) = camvid() else {
        println!("skipped: CamVid is absent; set INTSEG_CAMVID to its folder");
        return;
    };
    let dataset = Dataset::open(&dir, None).unwrap();
    assert_eq!(dataset.layout, Layout::Voc);
    let (train, val) = (dataset.split("train").unwrap(), dataset.split("val").unwrap());
    assert_eq!((train.len(), val.len()), (367, 101));
    let mut found = BTreeSet::new();
    for entry in train.iter().chain(&val).step_by(15) {
        let sample = dataset.read(entry, 11).unwrap();
        assert_eq!([sample.image.width, sample.image.height], [480, 360]);
        found.extend(sample.label.values);
    }
    assert_eq!(found.into_iter().collect::<Vec<_>>(), (0..11).chain([IGNORE]).collect::<Vec<_>>());
}
