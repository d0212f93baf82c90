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

#[cfg(test)]
mod tests {
    #[test]
    fn the_first_colours_are_those_of_pascal_voc() {
        let colours = super::voc(21);
        assert_eq!(colours[..4], [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]);
        assert_eq!(colours[20], [0, 64, 128]);
    }
}
