
/* The largest of each window's values; what lies outside never wins. */
void intseg_max_pool_SUFFIX(const int32_t kernel[2], const int32_t stride[2], const int32_t padding[2], ELEMENT *out,
                        const intseg_map *out_map, const ELEMENT *in, const intseg_map *in_map) {
    int32_t channels = in_map->channels;
    for (int32_t y = 0; y < out_map->rows; y++) {
        int32_t top = (out_map->first + y) * stride[0] - padding[0];
        int32_t bottom = top + kernel[0] < in_map->height ? top + kernel[0] : in_map->height;
        top = top > 0 ? top : 0;
        for (int32_t x = 0; x < out_map->width; x++) {
            int32_t left = x * stride[1] - padding[1];
            int32_t right = left + kernel[1] < in_map->width ? left + kernel[1] : in_map->width;
            left = left > 0 ? left : 0;
            for (int32_t row = top; row < bottom; row++) {
                for (int32_t column = left; column < right; column++) {
                    const ELEMENT *from = in + ((row - in_map->first) * in_map->width + column) * channels;
                    for (int32_t c = 0; c < channels; c++) {
                        if ((row == top && column == left) || from[c] > out[c]) {
                            out[c] = from[c];
                        }
                    }
                }
            }
            out += channels;
        }
    }
}
