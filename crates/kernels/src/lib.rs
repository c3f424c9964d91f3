//! What this program computes for itself instead of through tract's kernels.
//!
//! A crate of its own, as it is compiled for speed where the rest of a device's program is compiled for size. What computes
//! here is not generic to the outside, or it would be compiled where it is used; nor is it inlined there.
#![forbid(unsafe_code)]

pub mod depthwise;
pub mod forest;
mod steps;

pub use steps::Steps;

/// Loops that are worth wide vectors. What is not inlined into [`Loops::run`] has the narrow ones.
trait Loops {
    fn run(self);
}

/// Runs `loops` with vectors of 256 bits, if this processor has them. They are more than faster: what tract leaves in the upper
/// halves of the wide registers makes each instruction that knows only the lower ones wait.
#[cfg(target_arch = "x86_64")]
fn wide(loops: impl Loops) {
    struct Wide<L>(L);

    impl<L: Loops> pulp::WithSimd for Wide<L> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, _: S) {
            self.0.run();
        }
    }

    pulp::Arch::new().dispatch(Wide(loops));
}

/// Runs `loops` with the vectors that every processor of this target has.
#[cfg(not(target_arch = "x86_64"))]
fn wide(loops: impl Loops) {
    loops.run();
}
