
/* A tensor of 8 bits or, when `narrow` is NULL, of 16. */
typedef struct {
    const uint8_t *narrow;
    const int16_t *wide;
} intseg_term;

/* A sum of two tensors: left shifts (right, to nearest, where negative), a right shift of their sum, a clamp. */
typedef struct {
    int32_t shifts[2], shift, low, high;
} intseg_sum;
