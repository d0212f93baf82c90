/* Classifies every image in the file `input.rgb` (MODEL_HEIGHT x MODEL_WIDTH pixels of three bytes, one image behind
 * the other), writes the class maps, a byte a pixel, to `classes.raw`, and the first one in its classes' colours to
 * `classes.ppm`. An image is read and its classes are written a strip at a time, as on a device that has no room for
 * more. */
#include "model.h"

#include <stdio.h>

static model_arena arena;
static uint8_t image[3 * MODEL_STRIP_IMAGE_ROWS * MODEL_WIDTH];
static uint8_t classes[MODEL_STRIP_CLASS_ROWS * MODEL_WIDTH];

#ifdef MODEL_BEFORE_FRAME
void MODEL_BEFORE_FRAME(void);
void MODEL_AFTER_FRAME(void);
#endif

/* 1 when a strip was classified, 0 at the end of the images, -1 on a failure. */
static int run_strip(FILE *input, FILE *output, FILE *picture, long frame, int32_t strip) {
    model_rows in = model_image_rows(strip), out = model_class_rows(strip);
    long frame_bytes = 3L * MODEL_HEIGHT * MODEL_WIDTH;
    size_t bytes = (size_t)(3 * in.rows * MODEL_WIDTH), pixels = (size_t)(out.rows * MODEL_WIDTH), got;
    if (fseek(input, frame * frame_bytes + 3L * in.first * MODEL_WIDTH, SEEK_SET) != 0) {
        return -1;
    }
    got = fread(image, 1, bytes, input);
    if (got != bytes) {
        return got == 0 && strip == 0 ? 0 : -1;
    }
#ifdef MODEL_BEFORE_FRAME
    MODEL_BEFORE_FRAME();
#endif
    model_strip(strip, image, classes, &arena);
#ifdef MODEL_BEFORE_FRAME
    MODEL_AFTER_FRAME();
#endif
    for (size_t i = 0; frame == 0 && i < pixels; i++) {
        if (fwrite(model_palette[classes[i]], 1, 3, picture) != 3) {
            return -1;
        }
    }
    return fwrite(classes, 1, pixels, output) == pixels ? 1 : -1;
}

int main(void) {
    FILE *input = fopen("input.rgb", "rb"), *output = fopen("classes.raw", "wb"), *picture = fopen("classes.ppm", "wb");
    long frame = 0;
    int result = 1;
    if (input == NULL || output == NULL || picture == NULL) {
        (void)puts("cannot open input.rgb, classes.raw or classes.ppm");
        return 1;
    }
    (void)fprintf(picture, "P6 %d %d 255\n", MODEL_WIDTH, MODEL_HEIGHT);
    for (; result == 1; frame += result == 1) {
        for (int32_t strip = 0; strip < MODEL_STRIPS && result == 1; strip++) {
            result = run_strip(input, output, picture, frame, strip);
        }
    }
    if (result != 0 || fclose(output) != 0 || fclose(picture) != 0) {
        (void)printf("image %ld of input.rgb is incomplete, or its classes cannot be written\n", frame + 1);
        return 1;
    }
    (void)fclose(input);
    (void)printf("images %ld\n", frame);
    return frame > 0 ? 0 : 1;
}
