// Runs CUDA kernels on the CPU, to test them where there is no GPU.
//
// The kernels' own text follows this header, and a table of them follows that; a C++ compiler
// makes a shared library of all three. Every thread of a block is a fiber. Threads run one
// after the other until they meet at a barrier or exchange values within a warp, and then the
// next one runs. Threads that are not at the same kind of meeting point, and threads of a warp
// that left while others exchange values, are reported. Shared memory holds what is not a
// number when a block begins. Blocks and threads run in ascending or in descending order: what
// depends on it is a race.

#include <cmath>
#include <csetjmp>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <utility>

#define __global__
#define __device__
#define __shared__ static __attribute__((section("lopt_shared")))

extern "C" char __start_lopt_shared[], __stop_lopt_shared[];

struct Dim {
    unsigned x, y, z;
};

static Dim threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

enum State { READY, AT_BARRIER, IN_EXCHANGE, DONE };

struct Fiber {
    ucontext_t context;
    jmp_buf place;
    State state;
    unsigned exchanges;
};

const unsigned MOST = 1024;
const size_t STACK = 128 * 1024;
static Fiber fibers[MOST];
static char* stacks;
static unsigned created;
static jmp_buf scheduler;
static unsigned current;
static unsigned long long exchanged[2][MOST];
static void (*kernel)(void**);
static void** arguments;

// What a fiber does, for one block after the other.
static void live() {
    for (;;) {
        kernel(arguments);
        fibers[current].state = DONE;
        if (!_setjmp(fibers[current].place)) _longjmp(scheduler, 1);
    }
}

__attribute__((noinline)) static void pause(State state) {
    Fiber& own = fibers[current];
    own.state = state;
    if (!_setjmp(own.place)) _longjmp(scheduler, 1);
}

// Creates a fiber that waits at its start.
static void first_entry() {
    if (!_setjmp(fibers[current].place)) _longjmp(scheduler, 1);
    live();
}

static void create(unsigned count) {
    if (!stacks) stacks = (char*)malloc(MOST * STACK);
    for (; created < count; created++) {
        Fiber& fiber = fibers[created];
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = stacks + created * STACK;
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, first_entry, 0);
        current = created;
        if (!_setjmp(scheduler)) setcontext(&fiber.context);
    }
}

__attribute__((noinline)) static void resume(unsigned thread) {
    current = thread;
    threadIdx = {thread, 0, 0};
    fibers[thread].state = READY;
    if (!_setjmp(scheduler)) _longjmp(fibers[thread].place, 1);
}

// Runs the threads of a warp until none exchanges values; whether all went well.
static bool run_warp(unsigned first, unsigned end, bool descending) {
    for (;;) {
        unsigned exchanging = 0, others = 0;
        for (unsigned i = first; i < end; i++) {
            unsigned thread = descending ? end - 1 - (i - first) : i;
            if (fibers[thread].state == DONE) { others++; continue; }
            resume(thread);
            (fibers[thread].state == IN_EXCHANGE ? exchanging : others)++;
        }
        if (exchanging == 0) return true;
        if (others > 0 || end - first != 32) return false;
    }
}

static const char* run_block(bool descending) {
    unsigned threads = blockDim.x, warps = (threads + 31) / 32;
    memset(__start_lopt_shared, 0xff, __stop_lopt_shared - __start_lopt_shared);
    for (unsigned i = 0; i < threads; i++) {
        fibers[i].state = READY;
        fibers[i].exchanges = 0;
    }
    for (;;) {
        for (unsigned i = 0; i < warps; i++) {
            unsigned warp = descending ? warps - 1 - i : i;
            unsigned end = (warp + 1) * 32 < threads ? (warp + 1) * 32 : threads;
            if (!run_warp(warp * 32, end, descending)) return "threads of a warp diverge in an exchange";
        }
        unsigned done = 0;
        for (unsigned i = 0; i < threads; i++) done += fibers[i].state == DONE;
        if (done == threads) return nullptr;
        if (done > 0) return "threads end while others wait at a barrier";
    }
}

template <class T>
static T exchange(T value, unsigned from) {
    unsigned parity = fibers[current].exchanges++ % 2;
    memcpy(&exchanged[parity][current], &value, sizeof(T));
    pause(IN_EXCHANGE);
    T result;
    memcpy(&result, &exchanged[parity][current / 32 * 32 + from], sizeof(T));
    return result;
}

template <class... A, size_t... I>
static void call(void (*f)(A...), void** values, std::index_sequence<I...>) {
    f(*(A*)values[I]...);
}

template <class... A>
static void call(void (*f)(A...), void** values) {
    call(f, values, std::index_sequence_for<A...>());
}

struct Entry {
    const char* name;
    void (*run)(void**);
};

extern const Entry table[];

}  // namespace emulation

static inline void __syncthreads() { emulation::pause(emulation::AT_BARRIER); }

template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int lanes) {
    if (mask != 0xffffffffu) abort();
    return emulation::exchange(value, (emulation::current % 32) ^ lanes);
}

static inline float __uint_as_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline unsigned __float_as_uint(float value) {
    unsigned bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static inline double __longlong_as_double(long long bits) {
    double value;
    memcpy(&value, &bits, 8);
    return value;
}

// Runs a kernel; what went wrong, or null.
extern "C" const char* lopt_run(
    const char* name, unsigned x, unsigned y, unsigned threads, void** values, int descending
) {
    using namespace emulation;
    if (threads == 0 || threads > MOST) return "a block has 1 to 1024 threads";
    if (x == 0 || x > 0x7fffffffu || y == 0 || y > 65535) return "the grid is empty or too large";
    const Entry* entry = table;
    while (entry->name && strcmp(entry->name, name) != 0) entry++;
    if (!entry->name) return "there is no such kernel";
    kernel = entry->run;
    arguments = values;
    blockDim = {threads, 1, 1};
    gridDim = {x, y, 1};
    create(threads);
    for (unsigned long long i = 0; i < (unsigned long long)x * y; i++) {
        unsigned long long block = descending ? (unsigned long long)x * y - 1 - i : i;
        blockIdx = {(unsigned)(block % x), (unsigned)(block / x), 0};
        if (const char* problem = run_block(descending)) {
            // The stacks are in the middle of the kernel: begin anew.
            created = 0;
            return problem;
        }
    }
    return nullptr;
}
