
/* The two inputs that an output reads: (denominator - weight) * first + weight * second. */
typedef struct {
    int32_t first, second, weight;
} intseg_tap;

static intseg_tap intseg_tap_at(const intseg_axis *axis, int32_t index) {
    int32_t position = axis->start + axis->step * index;
    intseg_tap tap = {0, 0, 0};
    if (position > 0) {
        tap.first = position / axis->denominator;
        tap.weight = position - tap.first * axis->denominator;
    }
    if (tap.first + 1 >= axis->size) {
        tap.first = axis->size - 1;
        tap.weight = 0;
    }
    tap.second = tap.first + (tap.first + 1 < axis->size);
    return tap;
}
