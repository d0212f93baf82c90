/* Start-up of an emulated Cortex-M with semihosting, and a count of the instructions that frames take. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

extern uint32_t _estack, _sidata, _sdata, _edata, _sbss, _ebss;
extern int main(void);
extern void initialise_monitor_handles(void);
extern void __libc_init_array(void);
void frame_start(void);
void frame_stop(void);

#define SYSTICK_CONTROL (*(volatile uint32_t *)0xE000E010u)
#define SYSTICK_RELOAD (*(volatile uint32_t *)0xE000E014u)
#define SYSTICK_VALUE (*(volatile uint32_t *)0xE000E018u)

static volatile uint32_t wraps;
static uint64_t started, spent;

static void SysTick_Handler(void) { wraps++; }

static uint64_t ticks(void) {
    uint32_t before, value;
    do {
        before = wraps;
        value = SYSTICK_VALUE;
    } while (before != wraps);
    return ((uint64_t)before << 24) + (0xFFFFFFu - value);
}

void frame_start(void) { started = ticks(); }
void frame_stop(void) { spent += ticks() - started; }

/* The timer runs at an unknown part of the emulator's rate of one instruction a nanosecond (-icount shift=0): a loop
 * of 2^21 instructions tells which. */
static uint64_t ticks_of_2m_instructions(void) {
    uint32_t count = 1u << 20;
    uint64_t start = ticks();
    __asm__ volatile("1: subs %0, %0, #1\n bne 1b" : "+r"(count) : : "cc");
    return ticks() - start;
}

/* Semihosting's SYS_EXIT_EXTENDED, without the C library: a fault ends the emulator with a status of its own. */
static void leave(uint32_t status) {
    uint32_t block[2] = {0x20026u, status};
    register uint32_t operation __asm__("r0") = 0x20u;
    register void *argument __asm__("r1") = block;
    __asm__ volatile("bkpt 0xAB" : : "r"(operation), "r"(argument) : "memory");
    for (;;) {
    }
}

static void Fault_Handler(void) { leave(99); }

void Reset_Handler(void);
void Reset_Handler(void) {
    uint64_t rate;
    int status;
    for (uint32_t *from = &_sidata, *to = &_sdata; to < &_edata;) {
        *to++ = *from++;
    }
    for (uint32_t *to = &_sbss; to < &_ebss;) {
        *to++ = 0;
    }
#if defined(__ARM_FEATURE_MVE)
    *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* CPACR: the vector registers are a coprocessor's. */
    __asm__ volatile("dsb\n isb");
#endif
    initialise_monitor_handles();
    __libc_init_array();
    SYSTICK_RELOAD = 0xFFFFFFu;
    SYSTICK_VALUE = 0;
    SYSTICK_CONTROL = 7;
    while (SYSTICK_VALUE == 0) {
    }
    rate = ticks_of_2m_instructions();
    status = main();
    printf("instructions %lu k\n", (unsigned long)(spent * (1u << 21) / rate / 1000u));
    exit(status);
}

void _init(void);
void _fini(void);
void _init(void) {}
void _fini(void) {}

__attribute__((section(".vectors"), used)) static void (*const vectors[16])(void) = {
    (void (*)(void))&_estack, Reset_Handler, Fault_Handler, Fault_Handler, Fault_Handler, Fault_Handler, Fault_Handler,
    0, 0, 0, 0, Fault_Handler, Fault_Handler, 0, Fault_Handler, SysTick_Handler};
