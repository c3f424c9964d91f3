//! Numbers rounded to the steps that the integers of a quantised network stand for.

use crate::{Loops, wide};

/// Adding this to a float32 leaves no bits for a fraction, so that the processor rounds to the nearest integer, ties to
/// even; taking it away again is exact. It holds for numbers up to 2²², and needs no instruction that only some have.
const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23

/// One rounding: `(round(clamp(x / scale, least, most)) + shift) * unit`.
///
/// With the zero point `z` of `QuantizeLinear` taken off its range, and `shift` put at `z` less the zero point of the
/// `DequantizeLinear` behind it, whose scale is `unit`, these are both operators of ONNX at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Steps {
    /// Size of a step; above zero.
    pub scale: f32,
    /// Fewest steps, an integer of at most [`Steps::MOST`] in size.
    pub least: f32,
    /// Most steps, likewise; not below `least`.
    pub most: f32,
    /// Added to the steps; an integer of at most [`Steps::MOST`] in size.
    pub shift: f32,
    /// What a step stands for.
    pub unit: f32,
}

impl Steps {
    /// Most steps there may be in either direction: what lies beyond is not rounded right.
    pub const MOST: f32 = 4_194_304.0; // 2^22

    /// Whether these numbers are as the fields say.
    pub fn is_sound(&self) -> bool {
        let above_zero = self.scale > 0.0 && self.scale.is_finite() && self.unit.is_finite();
        let whole = [self.least, self.most, self.shift].into_iter().all(Self::is_whole);
        above_zero && whole && self.least <= self.most
    }

    /// Whether this is a number of steps there may be.
    pub fn is_whole(x: f32) -> bool {
        x.abs() <= Self::MOST && x.fract() == 0.0
    }

    /// Rounds all of `numbers`. What is not a number becomes the least, as in ONNX Runtime.
    #[inline(never)]
    pub fn round(&self, numbers: &mut [f32]) {
        wide(Rounded { steps: *self, numbers });
    }
}

struct Rounded<'a> {
    steps: Steps,
    numbers: &'a mut [f32],
}

impl Loops for Rounded<'_> {
    #[inline(always)]
    fn run(self) {
        let Steps { scale, least, most, shift, unit } = self.steps;
        for x in self.numbers {
            let steps = *x / scale;
            // In this form what is not a number is the least.
            let steps = if steps > least { steps } else { least };
            let steps = if steps < most { steps } else { most };
            *x = ((steps + ROUND) - ROUND + shift) * unit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scales from large to small, and every type of integer with its zero point at either end.
    fn all() -> impl Iterator<Item = Steps> {
        let kinds = [(-128.0, 127.0), (0.0, 255.0), (-32768.0, 32767.0), (0.0, 65535.0)];
        let of = |(least, most): (f32, f32)| {
            [least, most, ((least + most) / 2.0).floor()].map(|zero| (least - zero, most - zero, zero))
        };
        kinds.into_iter().flat_map(of).flat_map(|(least, most, zero)| {
            [3.0, 0.5, 0.003_921_6, 1e-7].map(|scale| Steps { scale, least, most, shift: zero, unit: 1.0 })
        })
    }

    #[test]
    fn it_is_the_rounding_of_the_standard_library() {
        for steps in all() {
            assert!(steps.is_sound(), "{steps:?}");
            // Around every tie, and beyond both ends.
            let n = 70_000;
            let ties = (-n..n).step_by(7).map(|i| (i as f32 + 0.5) * steps.scale);
            let numbers: Vec<f32> = ties.flat_map(|x| [x.next_down(), x, x.next_up(), x * 1.003]).collect();
            let mut got = numbers.clone();
            steps.round(&mut got);
            for (x, got) in numbers.iter().zip(got) {
                let want = (x / steps.scale).round_ties_even().clamp(steps.least, steps.most) + steps.shift;
                assert_eq!(got, want, "{x} by {steps:?}");
            }
        }
    }

    #[test]
    fn steps_are_numbers_again() {
        let steps = Steps { scale: 0.5, least: -131.0, most: 124.0, shift: 3.0 - 1.0, unit: 0.25 };
        let mut numbers = [0.25, 0.75, -0.25, 1e9, f32::NEG_INFINITY, 0.3, f32::NAN];
        steps.round(&mut numbers);
        assert_eq!(numbers, [0.5, 1.0, 0.5, 31.5, -32.25, 0.75, -32.25]);
    }

    #[test]
    fn what_can_not_be_rounded_is_known_beforehand() {
        let sound = Steps { scale: 1.0, least: -128.0, most: 127.0, shift: 0.0, unit: 1.0 };
        let not = [
            Steps { scale: 0.0, ..sound },
            Steps { scale: f32::NAN, ..sound },
            Steps { unit: f32::INFINITY, ..sound },
            Steps { least: 128.0, ..sound },
            Steps { least: f32::NAN, ..sound },
            Steps { most: 1e9, ..sound },
            Steps { most: 0.5, ..sound },
            Steps { shift: f32::NAN, ..sound },
        ];
        assert!(sound.is_sound());
        assert!(not.iter().all(|steps| !steps.is_sound()));
    }
}
