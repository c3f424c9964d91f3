//! Inputs for a model that came without any: rows of samples, or values drawn at random, the same for the same input.
use dunlin_engine::{Inspection, of_numbers};
use dunlin_learn::rng::Rng;
use dunlin_protocol::{Bytes, DType, TensorData, TensorSpec};

use super::RegistryError;

/// Elements of an input together: 32 rows of small tables, one row of a large image.
const ELEMENTS_MAX: usize = 1 << 20;
/// Largest of the wider integers: they are mostly places in a table or counts.
const COUNT_MAX: u64 = 100;

/// How far integers and truth values are drawn. What a model takes of them does not stand in its file: a place beyond the end
/// of a table ends a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// All that eight bits hold, as quantised models take them; of wider integers those up to [`COUNT_MAX`].
    Far,
    /// Zero and one.
    Near,
    /// Zeros.
    Zero,
}

impl Reach {
    /// The furthest first.
    pub(crate) const ALL: [Self; 3] = [Self::Far, Self::Near, Self::Zero];
}

/// Elements of one row of an input; every dimension but the first must be fixed.
pub(super) fn row_len(spec: &TensorSpec) -> Result<usize, RegistryError> {
    let refused =
        |why: &str| RegistryError::Refused(format!("input {:?} of shape {:?}: {why}", spec.name, spec.shape));
    let mut len = 1_usize;
    for &dim in spec.shape.get(1..).unwrap_or_default() {
        let dim = usize::try_from(dim).map_err(|_| refused("only the first dimension may be open"))?;
        len = len
            .checked_mul(dim)
            .filter(|len| (1..=ELEMENTS_MAX).contains(len))
            .ok_or_else(|| refused(&format!("a row must have 1 to {ELEMENTS_MAX} values")))?;
    }
    Ok(len)
}

/// `wanted` rows of every input, fewer if they are long, or as many as the model takes: those of the first input are spread
/// over the samples, if there are any.
pub(crate) fn inputs(
    inspection: &Inspection,
    samples: &[Vec<f32>],
    wanted: usize,
    reach: Reach,
) -> Result<Vec<TensorData>, RegistryError> {
    let fixed = inspection.inputs.iter().find_map(|spec| spec.shape.first().copied().filter(|&dim| dim > 0));
    let widest =
        inspection.inputs.iter().map(row_len).collect::<Result<Vec<_>, _>>()?.into_iter().max().unwrap_or(1);
    let rows = fixed.map_or(wanted.min(ELEMENTS_MAX / widest).max(1), |dim| dim as usize);
    let one = |(i, spec): (usize, &TensorSpec)| {
        let len = row_len(spec)?;
        let shape: Vec<u64> =
            std::iter::once(rows as u64).chain(spec.shape.iter().skip(1).map(|&dim| dim as u64)).collect();
        let values: Vec<f64> = if i == 0 && !samples.is_empty() {
            (0..rows).flat_map(|row| &samples[row * samples.len() / rows]).copied().map(f64::from).collect()
        } else {
            let mut rng = Rng::new(0, &spec.name);
            (0..rows * len).map(|_| drawn(spec.datatype, reach, &mut rng)).collect()
        };
        let numbers = of_numbers(&spec.name, spec.datatype, &shape, &values);
        Ok(numbers.unwrap_or_else(|| texts(spec, shape, rows * len, &inspection.words)))
    };
    inspection.inputs.iter().enumerate().map(one).collect()
}

/// One value.
fn drawn(kind: DType, reach: Reach, rng: &mut Rng) -> f64 {
    let (least, count) = match (kind, reach) {
        (DType::Fp16 | DType::Fp32 | DType::Fp64 | DType::Bytes, _) => return rng.unit() * 2.0 - 1.0,
        (_, Reach::Zero) => return 0.0,
        (DType::Bool, Reach::Far) | (_, Reach::Near) => (0.0, 2),
        (DType::Uint8, Reach::Far) => (f64::from(u8::MIN), 256),
        (DType::Int8, Reach::Far) => (f64::from(i8::MIN), 256),
        (
            DType::Uint16 | DType::Uint32 | DType::Uint64 | DType::Int16 | DType::Int32 | DType::Int64,
            Reach::Far,
        ) => (0.0, COUNT_MAX + 1),
    };
    least + rng.below(count) as f64
}

/// Words drawn at random, the same for the same input.
fn texts(spec: &TensorSpec, shape: Vec<u64>, count: usize, words: &[String]) -> TensorData {
    let mut rng = Rng::new(0, &spec.name);
    let mut data = Vec::new();
    for _ in 0..count {
        let place = ((rng.unit() * words.len() as f64) as usize).min(words.len().saturating_sub(1));
        let word = words.get(place).map(String::as_str).unwrap_or_default();
        // Each text stands behind its length (Open Inference Protocol V2, binary tensor data).
        data.extend((word.len() as u32).to_le_bytes());
        data.extend(word.as_bytes());
    }
    TensorData { name: spec.name.clone(), datatype: DType::Bytes, shape, data: Bytes(data) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(datatype: DType, reach: Reach) -> TensorData {
        let spec = TensorSpec { name: "x".into(), datatype, shape: vec![-1, 64] };
        let inspection = Inspection {
            inputs: vec![spec],
            outputs: vec![],
            ops: Default::default(),
            words: vec!["a".into()],
        };
        inputs(&inspection, &[], 32, reach).unwrap().remove(0)
    }

    #[test]
    fn eight_bits_are_drawn_from_all_they_hold_and_wider_integers_from_small_ones() {
        let distinct = |tensor: &TensorData| {
            let size = tensor.datatype.size().unwrap();
            let mut all: Vec<&[u8]> = tensor.data.0.chunks_exact(size).collect();
            all.sort_unstable();
            all.dedup();
            all.len()
        };
        for kind in DType::ALL.into_iter().filter(|kind| *kind != DType::Bytes) {
            let far = values(kind, Reach::Far);
            assert_eq!((far.shape.as_slice(), distinct(&far) > 1), (&[32, 64][..], true), "{kind:?}");
            assert_eq!(far, values(kind, Reach::Far), "{kind:?}");
        }
        assert!(distinct(&values(DType::Int8, Reach::Far)) > 200);
        assert!(distinct(&values(DType::Uint8, Reach::Far)) > 200);
        let places = values(DType::Int64, Reach::Far);
        let mut places = places.data.0.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes));
        assert!(places.all(|place| (0..=100).contains(&place)));
        assert_eq!(distinct(&values(DType::Bool, Reach::Far)), 2);
        assert_eq!(distinct(&values(DType::Int32, Reach::Near)), 2);
        assert_eq!(distinct(&values(DType::Int32, Reach::Zero)), 1);
    }

    #[test]
    fn samples_keep_their_values_in_the_types_of_the_input() {
        let spec = TensorSpec { name: "x".into(), datatype: DType::Int8, shape: vec![-1, 2] };
        let inspection =
            Inspection { inputs: vec![spec], outputs: vec![], ops: Default::default(), words: vec![] };
        let made = inputs(&inspection, &[vec![-128.0, 3.0], vec![127.0, 200.0]], 2, Reach::Far).unwrap();
        assert_eq!(made[0].data.0, [0x80, 3, 127, 127]);
    }
}
