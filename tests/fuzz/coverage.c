/* Coverage of gcc's build for libFuzzer, linked into each module that is fuzzed.
 *
 * gcc calls __sanitizer_cov_trace_pc() in every basic block (-fsanitize-coverage=trace-pc), which
 * libFuzzer no longer reads: it reads a table of 8-bit counters, as clang makes them. Here each block
 * gets the counter of its return address. A call takes five bytes on x86-64 and four on AArch64, so a
 * quarter of the address tells all blocks apart.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define HIDDEN __attribute__((visibility("hidden")))

enum { BYTES_PER_COUNTER = 4 };

/* Of this module; the linker makes them. */
extern const char __ehdr_start[] HIDDEN;
extern const char etext[] HIDDEN;

/* Of libFuzzer; without it the modules work and count for nobody. */
__attribute__((weak)) void __sanitizer_cov_8bit_counters_init(uint8_t *start, uint8_t *stop);
__attribute__((weak)) void __sanitizer_cov_pcs_init(const uintptr_t *start, const uintptr_t *stop);

static uint8_t *counters;

__attribute__((constructor)) static void register_counters(void) {
    size_t count = (size_t)(etext - __ehdr_start) / BYTES_PER_COUNTER + 1;
    uintptr_t *places = calloc(count, 2 * sizeof(uintptr_t));
    uint8_t *made = calloc(count, 1);
    if (places == NULL || made == NULL)
        abort();
    /* A place is its address and flags, of which none is set: no counter starts a function. */
    for (size_t i = 0; i < count; i++)
        places[2 * i] = (uintptr_t)__ehdr_start + i * BYTES_PER_COUNTER;
    counters = made;
    if (__sanitizer_cov_8bit_counters_init == NULL || __sanitizer_cov_pcs_init == NULL)
        return;
    __sanitizer_cov_8bit_counters_init(made, made + count);
    __sanitizer_cov_pcs_init(places, places + 2 * count);
}

HIDDEN void __sanitizer_cov_trace_pc(void) {
    const char *here = __builtin_return_address(0);
    if (counters != NULL)
        counters[(size_t)(here - __ehdr_start) / BYTES_PER_COUNTER]++;
}

/* gcc tells comparisons of floating-point numbers too, which libFuzzer does not know. */
HIDDEN void __sanitizer_cov_trace_cmpf(float left, float right) {
    (void)left;
    (void)right;
}

HIDDEN void __sanitizer_cov_trace_cmpd(double left, double right) {
    (void)left;
    (void)right;
}
