
/* The bias holds 2^63, so that the sum is never negative and its shift is exact; what that adds to the result is
 * subtracted again. Half of the unit rounds ties up; a tie, whose low bits are all zero, goes back to even. */
static int32_t intseg_requantize(int32_t value, const intseg_scale *scale, int32_t channel) {
    uint64_t sum = (uint64_t)((int64_t)(value * scale->unit) * scale->multiplier[channel]) + scale->bias[channel];
    uint32_t shift = scale->shift[channel];
    uint32_t top = (uint32_t)(sum >> 32);
    uint32_t floor = top >> shift;
    int32_t result;
    if ((uint32_t)sum == 0 && (top & ((1u << shift) - 1u)) == 0) {
        floor -= floor & 1u;
    }
    result = (int32_t)floor - (int32_t)(1u << (31u - shift));
    if (result < scale->low) {
        return scale->low;
    }
    return result > scale->high ? scale->high : result;
}
