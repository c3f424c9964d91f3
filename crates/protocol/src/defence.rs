//! Switches by which tests prove that a check would notice if a defence were missing.
//!
//! A released program has none: without the feature `weaken`, [`holds`] is the constant `true`. With it, `main` of
//! the weakened test programs switches off what the environment names, and nothing else can.

/// A defence that can be missing in a weakened test program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defence {
    /// A fetched file must have the signed digest.
    Digest,
    /// Metadata older than what was seen is refused.
    MetadataFloor,
    /// An assignment must name this device.
    Addressee,
    /// A wave opens only when its gate says so.
    Gate,
    /// A record leaves the spool only on the controller's acknowledgement.
    Acknowledgement,
}

impl Defence {
    /// Every defence.
    pub const ALL: [Self; 5] =
        [Self::Digest, Self::MetadataFloor, Self::Addressee, Self::Gate, Self::Acknowledgement];

    /// Its name in the environment variable of the weakened programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Digest => "digest",
            Self::MetadataFloor => "metadata_floor",
            Self::Addressee => "addressee",
            Self::Gate => "gate",
            Self::Acknowledgement => "acknowledgement",
        }
    }
}

#[cfg(feature = "weaken")]
static OFF: core::sync::atomic::AtomicU32 = core::sync::atomic::AtomicU32::new(0);

/// Switches off the named defences; names that are none are returned.
#[cfg(feature = "weaken")]
pub fn weaken(names: &str) -> alloc::vec::Vec<&str> {
    use core::sync::atomic::Ordering::Relaxed;
    let mut unknown = alloc::vec::Vec::new();
    for name in names.split(',').filter(|name| !name.is_empty()) {
        match Defence::ALL.into_iter().find(|defence| defence.name() == name) {
            Some(defence) => drop(OFF.fetch_or(1 << defence as u32, Relaxed)),
            None => unknown.push(name),
        }
    }
    unknown
}

/// Whether the defence is there.
#[cfg(feature = "weaken")]
pub fn holds(defence: Defence) -> bool {
    OFF.load(core::sync::atomic::Ordering::Relaxed) & (1 << defence as u32) == 0
}

/// Whether the defence is there: always.
#[cfg(not(feature = "weaken"))]
pub const fn holds(_defence: Defence) -> bool {
    true
}
