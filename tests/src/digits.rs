//! The UCI handwritten digits (Alpaydin and Kaynak, 1998; 1,797 images of 8×8 pixels, 0 to 16) as meter-reading cameras see
//! them, split once into three disjoint pools, and a documented way in which the cameras age.

use smartcore::dataset::digits;

/// Pixels of an image, and so features of the task.
pub const PIXELS: usize = 64;
/// Digits, and so classes of the task.
pub const CLASSES: usize = 10;
const SIDE: usize = 8;

/// One image with the digit it shows.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// Row by row, 0 (white) to 16 (black).
    pub pixels: [f32; PIXELS],
    /// What it shows.
    pub digit: u32,
}

/// The three pools. No image is in two of them.
#[derive(Debug)]
pub struct Pools {
    /// What the first models are trained on.
    pub training: Vec<Image>,
    /// What the cameras see day by day; some labels arrive late.
    pub stream: Vec<Image>,
    /// What accuracy is measured on; never labelled to the system, never trained on.
    pub measurement: Vec<Image>,
}

/// A small generator (SplitMix64; Steele, Lea, Flood 2014), so that a run can be repeated.
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Uniform below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next_u64() % n as u64).expect("a remainder of a usize is a usize")
    }

    /// A fair order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

impl Pools {
    /// Shuffles with `seed` and cuts: one third each.
    pub fn new(seed: u64) -> Self {
        let set = digits::load_dataset();
        let mut images: Vec<Image> = set
            .data
            .chunks_exact(PIXELS)
            .zip(&set.target)
            .map(|(pixels, digit)| Image {
                pixels: pixels.try_into().expect("chunks have that length"),
                digit: *digit as u32,
            })
            .collect();
        Rng(seed).shuffle(&mut images);
        let measurement = images.split_off(images.len() * 2 / 3);
        let stream = images.split_off(images.len() / 2);
        Self { training: images, stream, measurement }
    }
}

/// What a camera makes of a scene. Its mast sways, so the digit stands up to one pixel column off; with the years its
/// bracket sags by a pixel row, its lens fogs, so that contrast falls and a haze is added, and its noise shows more.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ageing {
    /// Columns by which the image may be off to either side.
    pub sway_columns: usize,
    /// Rows by which the image has moved down.
    pub sag_rows: usize,
    /// Factor on every pixel.
    pub contrast: f32,
    /// Added to every pixel.
    pub haze: f32,
    /// Half width of uniform noise.
    pub noise: f32,
}

/// A camera as it was mounted.
pub const NEW: Ageing = Ageing { sway_columns: 1, sag_rows: 0, contrast: 1.0, haze: 0.0, noise: 0.5 };
/// The same camera after some winters.
pub const AGED: Ageing = Ageing { sway_columns: 1, sag_rows: 1, contrast: 0.55, haze: 5.0, noise: 1.0 };

impl Ageing {
    /// The image as this camera sees it, in whole grey levels like the original.
    pub fn see(&self, image: &Image, rng: &mut Rng) -> Image {
        let mut seen = image.clone();
        // Column `c` shows what stood at `c + sway - off`.
        let off = rng.below(2 * self.sway_columns + 1);
        for (at, pixel) in seen.pixels.iter_mut().enumerate() {
            let (row, column) = (at / SIDE, at % SIDE);
            let from = row.checked_sub(self.sag_rows).zip((column + self.sway_columns).checked_sub(off));
            let ink = from
                .filter(|(_, column)| *column < SIDE)
                .map_or(0.0, |(row, column)| image.pixels[row * SIDE + column]);
            let noise = (rng.uniform() * 2.0 - 1.0) * self.noise;
            *pixel = (ink * self.contrast + self.haze + noise).round().clamp(0.0, 16.0);
        }
        seen
    }
}

/// Each image `views` times as a camera in this state sees it, in mixed order.
pub fn views(images: &[Image], camera: Ageing, views: usize, seed: u64) -> Vec<Image> {
    let mut rng = Rng(seed);
    let mut seen: Vec<Image> =
        (0..views).flat_map(|_| images).map(|image| camera.see(image, &mut rng)).collect();
    rng.shuffle(&mut seen);
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pools_share_no_image() {
        let pools = Pools::new(1);
        assert_eq!(pools.training.len() + pools.stream.len() + pools.measurement.len(), 1797);
        let others: Vec<_> = pools.training.iter().chain(&pools.stream).collect();
        // The data set itself holds no two equal images, so equality of pixels is identity.
        assert!(
            pools.measurement.iter().all(|image| others.iter().all(|other| other.pixels != image.pixels))
        );
    }

    #[test]
    fn ageing_moves_and_fogs_the_image() {
        let mut image = Image { pixels: [0.0; PIXELS], digit: 1 };
        image.pixels[0] = 16.0;
        let quiet = Ageing { noise: 0.0, sway_columns: 0, ..AGED };
        let seen = quiet.see(&image, &mut Rng(0));
        assert_eq!(seen.pixels[0], 5.0);
        assert_eq!(seen.pixels[8], (16.0f32 * 0.55 + 5.0).round());
    }
}
