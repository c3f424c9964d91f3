//! What models that somebody brings along, and those of TensorFlow Lite in int8, are held to beyond the tolerance of all:
//! single steps of 8 bits, the class of every row, and the classes that are known.
use anyhow::{Result, ensure};
use dunlin_protocol::{DType, TensorData};

/// Least share of 8-bit values that are no more than one step off. A sum in another order can fall on the other side of a
/// step, and what comes after it carries that on: then most scores of one row differ.
pub(crate) const SHARE_MIN: f64 = 0.98;

/// Holds 8-bit values against those that belong there; the furthest that one is off, in steps.
///
/// # Errors
/// Too many are off by more than one.
pub(crate) fn steps(name: &str, got: &[f64], want: &[f64]) -> Result<f64> {
    let off: Vec<f64> = got.iter().zip(want).map(|(a, b)| (a - b).abs()).collect();
    let beyond = off.iter().filter(|off| **off > 1.0).count();
    let furthest = off.iter().copied().fold(0.0, f64::max);
    ensure!(
        beyond as f64 <= (1.0 - SHARE_MIN) * off.len() as f64,
        "{beyond} of {} values of output {name:?} are more than a step off, up to {furthest}",
        off.len()
    );
    Ok(furthest)
}

/// Index of the largest score, the first of equal ones, and how far it is above the next.
fn best(scores: &[f64]) -> (usize, f64) {
    let mut best = 0;
    for (i, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = i;
        }
    }
    let others = scores.iter().enumerate().filter(|(i, _)| *i != best).map(|(_, score)| *score);
    (best, scores.get(best).copied().unwrap_or(f64::NAN) - others.fold(f64::NEG_INFINITY, f64::max))
}

/// Holds the class of every row against the one that belongs there, unless that is ahead of the next by no more than
/// `close`.
///
/// # Errors
/// A row has another class.
pub(crate) fn classes(got: &[f64], want: &[f64], rows: usize, close: f64) -> Result<()> {
    let width = want.len() / rows.max(1);
    if width < 2 {
        return Ok(());
    }
    for (row, (got, want)) in got.chunks(width).zip(want.chunks(width)).enumerate() {
        let ((class, _), (belongs, lead)) = (best(got), best(want));
        ensure!(class == belongs || lead <= close, "row {row} has class {class} where {belongs} belongs");
    }
    Ok(())
}

/// Rows whose class is the known one, and all rows.
///
/// # Errors
/// The labels are no whole numbers, or not as many as there are rows of scores.
pub(crate) fn right(scores: &[f64], labels: &TensorData) -> Result<(usize, usize)> {
    ensure!(labels.datatype == DType::Int64, "labels are INT64");
    let labels: Vec<i64> = labels.data.0.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
    let rows = labels.len();
    ensure!(
        rows > 0 && !scores.is_empty() && scores.len().is_multiple_of(rows),
        "{} scores of {rows} labelled rows",
        scores.len()
    );
    let classes = scores.chunks(scores.len() / rows).map(|row| best(row).0);
    let right = classes.zip(&labels).filter(|(class, label)| i64::try_from(*class) == Ok(**label));
    Ok((right.count(), rows))
}

#[cfg(test)]
mod tests {
    use dunlin_protocol::Bytes;

    use super::*;

    #[test]
    fn a_step_off_is_close_and_more_is_seldom() {
        let want = vec![10.0; 100];
        let with = |off: &[f64]| {
            let mut got = want.clone();
            got.iter_mut().zip(off).for_each(|(value, off)| *value += off);
            steps("y", &got, &want)
        };
        assert_eq!(with(&[1.0; 100]).unwrap(), 1.0);
        assert_eq!(with(&[30.0, -4.0]).unwrap(), 30.0);
        assert!(with(&[30.0, -4.0, 2.0]).unwrap_err().to_string().contains("3 of 100"));
    }

    #[test]
    fn rows_have_the_class_that_belongs_there() {
        let want = [1.0, 5.0, 3.0, 2.0];
        assert!(classes(&[0.0, 1.0, 9.0, 8.0], &want, 2, 0.0).is_ok());
        assert!(classes(&[0.0, 1.0, 8.0, 9.0], &want, 2, 1.0).is_ok(), "they are close");
        let error = classes(&[0.0, 1.0, 8.0, 9.0], &want, 2, 0.5).unwrap_err().to_string();
        assert_eq!(error, "row 1 has class 1 where 0 belongs");
        assert!(classes(&[1.0, 2.0], &[2.0, 1.0], 2, 0.0).is_ok(), "one value a row is no class");
    }

    #[test]
    fn known_classes_are_counted() {
        let labels = |labels: &[i64]| TensorData {
            name: "labels".into(),
            datatype: DType::Int64,
            shape: vec![labels.len() as u64],
            data: Bytes(labels.iter().flat_map(|label| label.to_le_bytes()).collect()),
        };
        assert_eq!(right(&[0.1, 0.9, 0.8, 0.2], &labels(&[1, 1])).unwrap(), (1, 2));
        assert!(right(&[0.1, 0.9, 0.8], &labels(&[1, 1])).is_err());
    }
}
