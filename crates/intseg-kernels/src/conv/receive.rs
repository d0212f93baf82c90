//! What becomes of the sums of a weight gradient.

use crate::Dither;
use crate::masters::WeightMasters;
use crate::pool::Disjoint;
use crate::sgd::{Rule, Update};
use core::sync::atomic::{AtomicUsize, Ordering};

/// A type that exact gradient sums are held in.
pub trait Sum: Copy + Send + Sync + Into<i64> {
    /// The sum and another value; the caller knows that it fits.
    fn plus(self, value: i64) -> Self;
    /// With `sum << shift` added.
    fn gain(self, sum: i32, shift: u32) -> Self;
}

impl Sum for i32 {
    #[inline(always)]
    fn plus(self, value: i64) -> Self {
        self.wrapping_add(value as i32)
    }

    #[inline(always)]
    fn gain(self, sum: i32, shift: u32) -> Self {
        // What fits 32 bits in the end may wrap before.
        self.wrapping_add(sum << shift)
    }
}

impl Sum for i64 {
    #[inline(always)]
    fn plus(self, value: i64) -> Self {
        self + value
    }

    #[inline(always)]
    fn gain(self, sum: i32, shift: u32) -> Self {
        self + (i64::from(sum) << shift)
    }
}

/// Takes the sums of weights `[taps, C_in, C_out]`.
pub(crate) trait Receive: Sync {
    /// Takes `sum << shift` of the weights from `at` on; returns what [`Receive::done`] wants to know. To be
    /// inlined into code that is compiled for an instruction set.
    ///
    /// # Safety
    /// No two calls that overlap in time may have a weight in common.
    unsafe fn take(&self, at: usize, sums: &[i32], shift: u32) -> u32;

    /// Ends a sequence of calls with the sum of what they returned: threads that wrote to one place in each would wait for
    /// each other.
    fn done(&self, total: u32);

    /// Says that the sums of `len` weights from `at` on follow soon.
    fn expect(&self, at: usize, len: usize);
}

/// Sums that are added to what is there.
pub(crate) struct Added<'a, S>(pub Disjoint<'a, S>);

impl<S: Sum> Receive for Added<'_, S> {
    #[inline(always)]
    unsafe fn take(&self, at: usize, sums: &[i32], shift: u32) -> u32 {
        // SAFETY: these weights are this call's alone, as the caller promises.
        let out = unsafe { self.0.piece(at, at + sums.len()) };
        for (out, &sum) in out.iter_mut().zip(sums) {
            *out = out.gain(sum, shift);
        }
        0
    }

    fn done(&self, _: u32) {}

    #[inline(always)]
    fn expect(&self, _: usize, _: usize) {}
}

/// Sums that masters and momenta are updated with: they never lie in memory, which masters and momenta come from. Sums of
/// a weight must come once, and be whole.
pub(crate) struct Learnt<'a> {
    steps: Disjoint<'a, i8>,
    fractions: Disjoint<'a, i16>,
    momenta: Disjoint<'a, i32>,
    rule: Rule,
    outside: AtomicUsize,
}

impl<'a> Learnt<'a> {
    /// Into as many masters as momenta.
    pub fn new(masters: WeightMasters<'a>, momenta: &'a mut [i32], update: &Update, dithers: [Dither; 2]) -> Self {
        Learnt {
            steps: Disjoint::new(masters.steps),
            fractions: Disjoint::new(masters.fractions),
            momenta: Disjoint::new(momenta),
            rule: Rule::new(update, dithers),
            outside: AtomicUsize::new(0),
        }
    }

    /// How many masters were left beyond the limit.
    pub fn outside(self) -> usize {
        self.outside.into_inner()
    }
}

impl Receive for Learnt<'_> {
    #[inline(always)]
    unsafe fn take(&self, at: usize, sums: &[i32], shift: u32) -> u32 {
        debug_assert_eq!(shift, 0, "the halves of a 16-bit error come one after the other");
        // SAFETY: these weights are this call's alone, as the caller promises.
        let steps = unsafe { self.steps.piece(at, at + sums.len()) };
        // SAFETY: as above.
        let fractions = unsafe { self.fractions.piece(at, at + sums.len()) };
        // SAFETY: as above.
        let momenta = unsafe { self.momenta.piece(at, at + sums.len()) };
        self.rule.apply(at, WeightMasters { steps, fractions }.each(), momenta, sums)
    }

    fn done(&self, total: u32) {
        self.outside.fetch_add(total as usize, Ordering::Relaxed);
    }

    #[inline(always)]
    fn expect(&self, at: usize, len: usize) {
        self.steps.fetch(at, len);
        self.fractions.fetch(at, len);
        self.momenta.fetch(at, len);
    }
}
