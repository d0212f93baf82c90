
/* Where an output index reads along an axis: at (start + step * index) / denominator, held inside 0..size - 1. */
typedef struct {
    int32_t step, start, denominator, size;
} intseg_axis;
