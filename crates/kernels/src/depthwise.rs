//! Convolutions in which every channel has a filter of its own, channels first.
//!
//! An image of one channel is laid out so that all values that a weight is multiplied with follow one another: with its
//! padding, and of strides above one every second (third, ...) row and column in a block of its own. The output is then
//! a sum of as many stretches of that layout as the filter has weights, without an edge to look out for, however narrow the
//! image is. At the end of each row some sums are of no use and are left out.

use crate::{Loops, wide};

/// Sums that are worked on at one time: as many as stay in the registers of a processor with 128 bits in each.
const LANES: usize = 32;
/// How many times what is of use may be laid out or summed up.
const USELESS_MAX: usize = 8;

/// One axis of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Axis {
    /// Values in the image.
    pub image: usize,
    /// Values in the output.
    pub output: usize,
    /// Weights.
    pub kernel: usize,
    /// Values of the image from one output to the next; above zero.
    pub stride: usize,
    /// Values of the image from one weight to the next.
    pub dilation: usize,
    /// Zeros before the image.
    pub before: usize,
}

impl Axis {
    /// Values in each block of the layout.
    fn block(&self) -> Option<usize> {
        let reach = self.kernel.saturating_sub(1).checked_mul(self.dilation)?;
        let reached = reach.checked_div(self.stride)?.checked_add(self.output)?;
        Some(reached.max(self.before.checked_add(self.image)?.div_ceil(self.stride)))
    }

    /// Block of a value, and its place there.
    fn place(&self, padded: usize) -> (usize, usize) {
        (padded % self.stride, padded / self.stride)
    }
}

/// A convolution of images of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Depthwise {
    rows: Axis,
    columns: Axis,
    /// Values in a row of the layout.
    width: usize,
    /// Values in a block of the layout.
    block: usize,
    /// By column of the image, up to the stride: where it lies from there, and with it every column that is a multiple of
    /// the stride away.
    columns_at: Vec<usize>,
    /// By weight: where what it is multiplied with begins.
    taps: Vec<usize>,
    /// Sums of an image, those that are of no use and rounded up.
    sums: usize,
    /// Values in the layout.
    length: usize,
}

impl Depthwise {
    /// A convolution over these two axes; `None` where another way is better: of an output that is small beside its
    /// filter, or an image that is small beside its padding or strides.
    pub fn new(rows: Axis, columns: Axis) -> Option<Self> {
        let width = columns.block()?;
        let block = rows.block()?.checked_mul(width)?;
        let blocks = rows.stride.checked_mul(columns.stride)?.checked_mul(block)?;
        let image = rows.image.checked_mul(columns.image)?;
        let plane = rows.output.checked_mul(columns.output)?;
        // The last row ends with its last sum that is of use.
        let sums = rows.output.saturating_sub(1).checked_mul(width)?.checked_add(columns.output)?;
        let sums = sums.checked_next_multiple_of(LANES)?;
        let length = blocks.checked_add(sums)?;
        let worth = |what: usize| what.saturating_mul(USELESS_MAX).max(LANES);
        if plane == 0 || sums > worth(plane) || length > worth(image.checked_add(sums)?) {
            return None;
        }
        let row_at = |padded: usize| {
            let (of, row) = rows.place(padded);
            of * columns.stride * block + row * width
        };
        let column_at = |padded: usize| {
            let (of, column) = columns.place(padded);
            of * block + column
        };
        let tap =
            |row: usize, column: usize| row_at(row * rows.dilation) + column_at(column * columns.dilation);
        let taps = (0..rows.kernel).flat_map(|row| (0..columns.kernel).map(move |column| tap(row, column)));
        let taps = taps.collect();
        let columns_at =
            (0..columns.image.min(columns.stride)).map(|x| column_at(columns.before + x)).collect();
        Some(Self { rows, columns, width, block, columns_at, taps, sums, length })
    }

    /// Convolves `images`, one after another and of each channel after channel. `weights` has the filter of every
    /// channel, row after row, and `bias` what is added to each. All of `output` is written.
    ///
    /// # Panics
    /// If the lengths do not belong together.
    #[inline(never)]
    pub fn run(&self, images: &[f32], weights: &[f32], bias: &[f32], output: &mut [f32]) {
        let (image, kernel) = (self.rows.image * self.columns.image, self.taps.len());
        let plane = self.rows.output * self.columns.output;
        assert_eq!(weights.len(), bias.len() * kernel, "a filter for each channel");
        let count = output.len() / plane;
        assert_eq!((images.len(), output.len()), (count * image, count * plane), "an output for each image");
        if image == 0 || kernel == 0 {
            let channels = output.chunks_exact_mut(plane).zip(bias.iter().cycle());
            channels.for_each(|(channel, bias)| channel.fill(*bias));
            return;
        }
        wide(Planes { of: self, images, weights, bias, output });
    }

    #[inline(always)]
    fn lay_out(&self, image: &[f32], layout: &mut [f32]) {
        let stride = self.columns.stride;
        let (mut of, mut at) = self.rows.place(self.rows.before);
        for row in image.chunks_exact(self.columns.image) {
            let from = of * stride * self.block + at * self.width;
            for (first, from_there) in self.columns_at.iter().enumerate() {
                let to = &mut layout[from + from_there..];
                if stride == 1 {
                    to[..row.len()].copy_from_slice(row);
                } else {
                    let values = row[first..].iter().step_by(stride);
                    to.iter_mut().zip(values).for_each(|(to, value)| *to = *value);
                }
            }
            of += 1;
            if of == self.rows.stride {
                (of, at) = (0, at + 1);
            }
        }
    }

    #[inline(always)]
    fn sum(&self, layout: &[f32], weights: &[f32], bias: f32, sums: &mut [f32]) {
        let (lanes, _) = sums.as_chunks_mut::<LANES>();
        for (i, lanes) in lanes.iter_mut().enumerate() {
            let mut sum = [bias; LANES];
            for (tap, weight) in self.taps.iter().zip(weights) {
                let values = &layout[tap + i * LANES..][..LANES];
                for (sum, value) in sum.iter_mut().zip(values) {
                    *sum += weight * value;
                }
            }
            *lanes = sum;
        }
    }
}

/// Images, each of one channel, and what they are convolved with.
struct Planes<'a> {
    of: &'a Depthwise,
    images: &'a [f32],
    weights: &'a [f32],
    bias: &'a [f32],
    output: &'a mut [f32],
}

impl Loops for Planes<'_> {
    #[inline(always)]
    fn run(self) {
        let Self { of: Depthwise { rows, columns, taps, .. }, .. } = self;
        // Padding is zero once and for all: images are laid out over one another.
        let mut layout = vec![0.0; self.of.length];
        let mut sums = vec![0.0; self.of.sums];
        let filters = self.weights.chunks_exact(taps.len()).zip(self.bias).cycle();
        let images = self.images.chunks_exact(rows.image * columns.image);
        let outputs = self.output.chunks_exact_mut(rows.output * columns.output);
        for ((image, output), (weights, bias)) in images.zip(outputs).zip(filters) {
            self.of.lay_out(image, &mut layout);
            self.of.sum(&layout, weights, *bias, &mut sums);
            let rows = output.chunks_exact_mut(columns.output).zip(sums.chunks(self.of.width));
            rows.for_each(|(row, sums)| row.copy_from_slice(&sums[..row.len()]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The convolution as it is defined.
    fn plain(rows: Axis, columns: Axis, images: &[f32], weights: &[f32], bias: &[f32]) -> Vec<f32> {
        let at = |axis: &Axis, out: usize, k: usize| {
            (out * axis.stride + k * axis.dilation).checked_sub(axis.before).filter(|x| *x < axis.image)
        };
        let mut output = Vec::new();
        for (i, image) in images.chunks(rows.image * columns.image).enumerate() {
            let channel = i % bias.len();
            for y in 0..rows.output {
                for x in 0..columns.output {
                    let mut sum = bias[channel];
                    for ky in 0..rows.kernel {
                        for kx in 0..columns.kernel {
                            let weight = weights[(channel * rows.kernel + ky) * columns.kernel + kx];
                            if let Some((y, x)) = at(&rows, y, ky).zip(at(&columns, x, kx)) {
                                sum += weight * image[y * columns.image + x];
                            }
                        }
                    }
                    output.push(sum);
                }
            }
        }
        output
    }

    fn numbers(n: usize, from: usize) -> Vec<f32> {
        (0..n).map(|i| ((i + from) * 7 % 23) as f32 - 11.0).collect()
    }

    /// All axes of some sizes, and what of them reaches no further than its padding allows.
    fn axes() -> impl Iterator<Item = Axis> + Clone {
        let sizes = [1_usize, 2, 3, 5, 12, 40];
        let shapes = [(1, 1, 1, 0, 0), (3, 1, 1, 1, 1), (3, 2, 1, 0, 1), (3, 2, 1, 1, 1), (3, 1, 2, 2, 2)];
        let more = [(2, 3, 1, 0, 0), (5, 2, 2, 3, 4), (4, 1, 1, 2, 1), (10, 2, 1, 4, 5)];
        let shapes = shapes.into_iter().chain(more);
        sizes.into_iter().flat_map(move |image| {
            shapes.clone().filter_map(move |(kernel, stride, dilation, before, after)| {
                let reach = (kernel - 1) * dilation + 1;
                let output = (before + image + after).checked_sub(reach)? / stride + 1;
                Some(Axis { image, output, kernel, stride, dilation, before })
            })
        })
    }

    #[test]
    fn it_is_the_convolution_as_it_is_defined() {
        let (images, channels) = (2, 3);
        let (mut cases, mut done) = (0, 0);
        for rows in axes() {
            for columns in axes() {
                let image = numbers(images * channels * rows.image * columns.image, cases);
                let weights = numbers(channels * rows.kernel * columns.kernel, cases + 5);
                let bias = numbers(channels, cases + 9);
                let want = plain(rows, columns, &image, &weights, &bias);
                let mut got = vec![f32::NAN; want.len()];
                cases += 1;
                let Some(depthwise) = Depthwise::new(rows, columns) else { continue };
                depthwise.run(&image, &weights, &bias, &mut got);
                assert_eq!(got, want, "{rows:?} {columns:?}");
                done += 1;
            }
        }
        assert!(done > 1500 && done > cases * 3 / 4, "{done} of {cases} cases");
    }

    #[test]
    fn a_value_that_is_no_number_reaches_no_further_than_its_filter() {
        let axis = Axis { image: 4, output: 4, kernel: 3, stride: 1, dilation: 1, before: 1 };
        let mut image = numbers(2 * 16, 0);
        image[0] = f32::NAN;
        let mut output = vec![0.0; 2 * 16];
        Depthwise::new(axis, axis).unwrap().run(&image, &numbers(2 * 9, 1), &[0.0, 0.0], &mut output);
        let reached: Vec<usize> = (0..output.len()).filter(|&i| output[i].is_nan()).collect();
        assert_eq!(reached, [0, 1, 4, 5]);
    }

    #[test]
    fn what_has_no_image_is_its_bias() {
        let axis = Axis { image: 0, output: 2, kernel: 2, stride: 1, dilation: 1, before: 2 };
        let mut output = vec![0.0; 4];
        Depthwise::new(axis, axis).unwrap().run(&[], &numbers(4, 1), &[3.0], &mut output);
        assert_eq!(output, [3.0; 4]);
    }

    #[test]
    fn what_would_mostly_be_zeros_is_left_to_others() {
        let axis = Axis { image: 1, output: 1, kernel: 64, stride: 1, dilation: 4096, before: 258_048 };
        assert_eq!(Depthwise::new(axis, axis), None);
        let one = Axis { image: 30, output: 30, kernel: 1, stride: 1, dilation: 1, before: 0 };
        let far = Axis { stride: 4096, ..one };
        assert_eq!(Depthwise::new(far, far), None, "a block for each of its rows and columns");
        let wide = Axis { image: 1000, output: 1, kernel: 1000, ..one };
        assert_eq!(Depthwise::new(one, wide), None, "sums of a whole row for each that is of use");
        let endless = Axis { image: usize::MAX, ..one };
        assert_eq!(Depthwise::new(endless, endless), None);
        assert!(Depthwise::new(one, one).is_some());
    }
}
