
/* A convolution. */
typedef struct {
    int32_t kernel[2], stride[2], dilation[2], padding[2];
    /* What stands for zero in the input: 128 in an image, 0 elsewhere. */
    int32_t zero;
    /* Products of one sum, and the same up to a multiple of 4: the distance between two channels' weights. */
    int32_t taps, row;
    /* [channels][row] */
    const int8_t *weights;
    /* The sum of each channel's weights. */
    const int32_t *weight_sums;
    intseg_scale scale;
} intseg_conv;

/* Bytes of scratch for sums of `row` products: two windows. */
#ifdef INTSEG_DSP
#define INTSEG_CONV_SCRATCH(row) (6 * (row))
#else
#define INTSEG_CONV_SCRATCH(row) (2 * (row))
#endif

/* Writes 8 bits to `out8`, or 16 to `out16` when `out8` is NULL. */
void intseg_convolve(const intseg_conv *conv, uint8_t *out8, int16_t *out16, const intseg_map *out_map,
                     const uint8_t *in, const intseg_map *in_map, uint8_t *scratch);
