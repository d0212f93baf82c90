//! Colours of classes.

/// The colours of `classes` classes: PASCAL VOC's colour map, in which the bits of the class's number are spread over
/// the high bits of red, green and blue.
pub fn voc(classes: usize) -> Vec<[u8; 3]> {
    (0..classes)
        .map(|class| {
            let mut colour = [0; 3];
            for level in 0..8 {
                for (channel, value) in colour.iter_mut().enumerate() {
                    *value |= ((class >> (3 * level + channel) & 1) as u8) << (7 - level);
                }
            }
            colour
        })
        .collect()
}

/// A class as `classes.txt` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// Its name.
    pub name: String,
    /// Its colour, where the line gives one.
    pub colour: Option<[u8; 3]>,
}

/// Reads the lines of a `classes.txt`: a name, which may have spaces, and optionally its red, green and blue.
pub fn parse_classes(text: &str) -> Vec<Class> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(|line| coloured(line).unwrap_or_else(|| Class { name: line.to_owned(), colour: None })).collect()
}

/// A line that ends in three numbers of 8 bits after a name.
fn coloured(line: &str) -> Option<Class> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (name, [r, g, b]) = words.split_last_chunk().filter(|(name, _)| !name.is_empty())?;
    let colour = Some([r.parse().ok()?, g.parse().ok()?, b.parse().ok()?]);
    Some(Class { name: name.join(" "), colour })
}

#[cfg(test)]
mod tests {
    use super::{Class, parse_classes};

    #[test]
    fn class_lines_are_names_with_an_optional_colour() {
        let class = |name: &str, colour| Class { name: name.into(), colour };
        assert_eq!(
            parse_classes("sky 128 128 128\n\n traffic light 1 2 3 \nroad\nlane 4\narea 1 2 300\n7 8 9\n"),
            [
                class("sky", Some([128; 3])),
                class("traffic light", Some([1, 2, 3])),
                class("road", None),
                class("lane 4", None),
                class("area 1 2 300", None),
                class("7 8 9", None),
            ]
        );
    }

    #[test]
    fn the_first_colours_are_those_of_pascal_voc() {
        let colours = super::voc(21);
        assert_eq!(colours[..4], [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]);
        assert_eq!(colours[20], [0, 64, 128]);
    }
}
