
/* Resizes the logits to the image's size, a row at a time, and takes each pixel's largest: the first of several.
 * `axes` are those of rows and columns, `row` is scratch of one row of logits. */
void intseg_classify(const intseg_axis axes[2], uint8_t *classes, const intseg_map *out_map, const int16_t *logits,
                     const intseg_map *in_map, int32_t *row);
