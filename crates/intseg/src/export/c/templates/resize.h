
/* Bilinear resizing, exact up to one rounding. `axes` are those of rows and columns. */
void intseg_resize_SUFFIX(const intseg_axis axes[2], ELEMENT *out, const intseg_map *out_map, const ELEMENT *in,
                      const intseg_map *in_map);
