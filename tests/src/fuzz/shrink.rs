//! Makes inputs small, so that a corpus can be read.
use anyhow::Result;

/// Runs that one input may cost.
const RUNS_MAX: usize = 4000;

/// Takes pieces out of an input, large ones first, as long as it does the same.
pub(crate) fn shrink(input: &[u8], mut same: impl FnMut(&[u8]) -> Result<bool>) -> Result<Vec<u8>> {
    let mut small = input.to_vec();
    let (mut piece, mut runs) = (small.len() / 2, 0);
    while piece > 0 {
        let mut at = 0;
        while at < small.len() && runs < RUNS_MAX {
            let end = (at + piece).min(small.len());
            let shorter = [&small[..at], &small[end..]].concat();
            runs += 1;
            if same(&shorter)? { small = shorter } else { at = end }
        }
        piece /= 2;
    }
    Ok(small)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_difference_is_taken_out() {
        let input: Vec<u8> = (0..=255).collect();
        let needs = |bytes: &[u8]| Ok(bytes.contains(&7) && bytes.contains(&200));
        assert_eq!(shrink(&input, needs).unwrap(), [7, 200]);
    }
}
