//! Convolutions in which every channel has a filter of its own, channels first.
//!
//! An image of one channel is laid out so that all values that a weight is multiplied with follow one another: with its
//! padding, and of strides above one every second (third, ...) row and column in a block of its own. The output is then
//! a sum of as many stretches of that layout as the filter has weights, without an edge to look out for, however narrow the
//! image is. At the end of each row some sums are of no use and are left out.

use crate::{Loops, widest};

/// Sums that are worked on at one time: as many as stay in the registers of a processor with 128 bits in each.
const LANES: usize = 32;

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
    fn block(&self) -> usize {
        let reached = (self.kernel.max(1) - 1) * self.dilation / self.stride + self.output;
        reached.max((self.before + self.image).div_ceil(self.stride))
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
    /// By row of the image: where it begins in the layout.
    rows_at: Vec<usize>,
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
    /// A convolution over these two axes.
    pub fn new(rows: Axis, columns: Axis) -> Self {
        let width = columns.block();
        let block = rows.block() * width;
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
        let taps: Vec<usize> = taps.collect();
        let sums = (rows.output * width).next_multiple_of(LANES);
        let last = taps.iter().max().copied().unwrap_or(0);
        Self {
            rows,
            columns,
            width,
            rows_at: (0..rows.image).map(|row| row_at(rows.before + row)).collect(),
            columns_at: (0..columns.image.min(columns.stride))
                .map(|x| column_at(columns.before + x))
                .collect(),
            taps,
            sums,
            length: (rows.stride * columns.stride * block).max(last + sums),
        }
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
        if image == 0 || plane == 0 || kernel == 0 {
            let channels = output.chunks_mut(plane.max(1)).zip(bias.iter().cycle());
            channels.for_each(|(channel, bias)| channel.fill(*bias));
            return;
        }
        assert_eq!(images.len() / image, output.len() / plane, "an output for each image");
        widest(Planes { of: self, images, weights, bias, output });
    }

    #[inline(always)]
    fn lay_out(&self, image: &[f32], layout: &mut [f32]) {
        let stride = self.columns.stride;
        for (row, at) in image.chunks_exact(self.columns.image).zip(&self.rows_at) {
            for (first, from_there) in self.columns_at.iter().enumerate() {
                let to = &mut layout[at + from_there..];
                if stride == 1 {
                    to[..row.len()].copy_from_slice(row);
                } else {
                    let values = row[first..].iter().step_by(stride);
                    to.iter_mut().zip(values).for_each(|(to, value)| *to = *value);
                }
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
        let mut cases = 0;
        for rows in axes() {
            for columns in axes() {
                let image = numbers(images * channels * rows.image * columns.image, cases);
                let weights = numbers(channels * rows.kernel * columns.kernel, cases + 5);
                let bias = numbers(channels, cases + 9);
                let want = plain(rows, columns, &image, &weights, &bias);
                let mut got = vec![f32::NAN; want.len()];
                Depthwise::new(rows, columns).run(&image, &weights, &bias, &mut got);
                assert_eq!(got, want, "{rows:?} {columns:?}");
                cases += 1;
            }
        }
        assert!(cases > 1500, "{cases} cases");
    }

    #[test]
    fn a_value_that_is_no_number_reaches_no_further_than_its_filter() {
        let axis = Axis { image: 4, output: 4, kernel: 3, stride: 1, dilation: 1, before: 1 };
        let mut image = numbers(2 * 16, 0);
        image[0] = f32::NAN;
        let mut output = vec![0.0; 2 * 16];
        Depthwise::new(axis, axis).run(&image, &numbers(2 * 9, 1), &[0.0, 0.0], &mut output);
        let reached: Vec<usize> = (0..output.len()).filter(|&i| output[i].is_nan()).collect();
        assert_eq!(reached, [0, 1, 4, 5]);
    }

    #[test]
    fn what_has_no_image_is_its_bias() {
        let axis = Axis { image: 0, output: 2, kernel: 2, stride: 1, dilation: 1, before: 2 };
        let mut output = vec![0.0; 4];
        Depthwise::new(axis, axis).run(&[], &numbers(4, 1), &[3.0], &mut output);
        assert_eq!(output, [3.0; 4]);
    }
}
