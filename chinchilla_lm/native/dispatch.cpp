// Which kernels this CPU can run.

#include <cstring>

#include "kernels.h"

#if defined(CHINCHILLA_X86)
#include <cpuid.h>
#endif
#if defined(CHINCHILLA_X86) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(CHINCHILLA_DOTPROD) && defined(__linux__)
#include <sys/auxv.h>
#if !defined(HWCAP_ASIMDDP)
#define HWCAP_ASIMDDP (1 << 20)  // older headers lack it
#endif
#endif

namespace chinchilla {

namespace portable { extern const Kernels kernels; }
#if defined(CHINCHILLA_X86)
namespace avx2 { extern const Kernels kernels; }
namespace avxvnni { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
namespace avx512bf16 { extern const Kernels kernels; }
namespace amx { extern const Kernels kernels; }
#endif
#if defined(CHINCHILLA_DOTPROD)
namespace dotprod { extern const Kernels kernels; }
#endif

namespace {

struct Offer {
    const Kernels* kernels;
    bool runs;
};

#if defined(CHINCHILLA_X86)
bool avx2_runs() {
    unsigned a, b, c, d;
    constexpr unsigned kF16c = 1U << 29;  // older Clangs do not know it by name
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) && (c & kF16c);
}

#if !defined(CHINCHILLA_EMULATED_ALL)
bool avxvnni_runs() {
    unsigned a, b, c, d;
    return avx2_runs() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1U << 4));
}

bool avx512_runs() {
    return avx2_runs() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}

// Of those CPUs all but Cooper Lake have look-ups of bytes in tables of 64 and more, for codes.
bool avx512bf16_runs() {
    return avx512_runs() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi") &&
           __builtin_cpu_supports("avx512vbmi2");
}
#endif

#if !defined(CHINCHILLA_EMULATED_TILES)
// The CPU has tiles for bytes and bfloat16, the system saves them (XCR0), and this process may use them: Linux wants to
// be asked, once and for all threads.
bool amx_runs() {
    unsigned a, b, c, d;
    if (!avx512bf16_runs() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    constexpr unsigned kTiles = 1U << 24, kBytes = 1U << 25, kBf16 = 1U << 22, kBoth = 3U << 17;
    if ((d & (kTiles | kBytes | kBf16)) != (kTiles | kBytes | kBf16)) return false;
    unsigned low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & kBoth) != kBoth) return false;
#if defined(__linux__)
    constexpr int kAskPermission = 0x1023, kTileData = 18;  // arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
    return syscall(SYS_arch_prctl, kAskPermission, kTileData) == 0;
#else
    return false;
#endif
}
#endif
#endif

#if defined(CHINCHILLA_DOTPROD)
bool dotprod_runs() {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__APPLE__)
    return true;  // all of Apple's
#else
    return false;
#endif
}
#endif

// Best first. What is emulated is never the best: it is slow, and for tests.
const Offer* offers() {
    static const Offer all[] = {
#if defined(CHINCHILLA_X86) && !defined(CHINCHILLA_EMULATED_TILES)
        {&amx::kernels, amx_runs()},
#endif
#if defined(CHINCHILLA_X86) && !defined(CHINCHILLA_EMULATED_ALL)
        {&avx512bf16::kernels, avx512bf16_runs()},
        {&avx512::kernels, avx512_runs()},
        {&avxvnni::kernels, avxvnni_runs()},
#endif
#if defined(CHINCHILLA_X86)
        {&avx2::kernels, avx2_runs()},
#endif
#if defined(CHINCHILLA_DOTPROD)
        {&dotprod::kernels, dotprod_runs()},
#endif
        {&portable::kernels, true},
#if defined(CHINCHILLA_EMULATED_ALL)
        {&avx512bf16::kernels, avx2_runs()},
        {&avx512::kernels, avx2_runs()},
        {&avxvnni::kernels, avx2_runs()},
        {&amx::kernels, avx2_runs()},
#elif defined(CHINCHILLA_EMULATED_TILES)
        {&amx::kernels, avx512bf16_runs()},
#endif
        {nullptr, false},
    };
    return all;
}

}  // namespace

const Kernels* kernels_of(const char* name) {
    for (const Offer* offer = offers(); offer->kernels; ++offer) {
        if (offer->runs && (!name || !std::strcmp(name, offer->kernels->name))) return offer->kernels;
    }
    return nullptr;
}

const char* const* kernel_names() {
    static const char* names[8] = {};
    int count = 0;
    for (const Offer* offer = offers(); offer->kernels; ++offer) {
        if (offer->runs) names[count++] = offer->kernels->name;
    }
    return names;
}

}  // namespace chinchilla
