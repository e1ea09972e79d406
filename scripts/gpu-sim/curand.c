// What candle needs of cuRAND (libcurand) to open a device. No random number is drawn: a call that
// would draw one ends the process.
#include <stdlib.h>

int curandCreateGenerator(void **generator, int kind) {
    return (*generator = malloc(1)) ? 0 : 102;
}

int curandDestroyGenerator(void *generator) {
    free(generator);
    return 0;
}

int curandSetPseudoRandomGeneratorSeed(void *generator, unsigned long long seed) {
    return 0;
}

int curandSetStream(void *generator, void *stream) {
    return 0;
}
