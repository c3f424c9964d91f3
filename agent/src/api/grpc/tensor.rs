//! Tensors of messages, typed or raw, as the engine takes them.

use bytes::Bytes;
use dunlin_protocol::{DType, TensorData};

use super::message::{Contents, InputTensor};
use crate::api::Limits;
use crate::api::refusal::Refusal;
use crate::api::request::{count, datatype, fits};

/// The inputs of a request: either all raw, in the order of the inputs, or each with typed contents.
pub(super) fn inputs(
    inputs: Vec<InputTensor>,
    raw: Vec<Bytes>,
    limits: &Limits,
) -> Result<Vec<TensorData>, Refusal> {
    if raw.is_empty() {
        return inputs.into_iter().map(|input| typed(input, limits)).collect();
    }
    if raw.len() != inputs.len() {
        return Err(Refusal::bad(format!(
            "{} raw contents for {} inputs: give one for each",
            raw.len(),
            inputs.len()
        )));
    }
    let of = |(input, raw): (InputTensor, Bytes)| {
        if input.contents.is_some() {
            let name = short(&input.name);
            return Err(Refusal::bad(format!("input {name:?} has typed contents beside the raw ones")));
        }
        let (kind, shape, elements) = head(&input, limits)?;
        fits(&short(&input.name), kind, &raw, elements)?;
        Ok(TensorData { name: input.name, datatype: kind, shape, data: raw.to_vec().into() })
    };
    inputs.into_iter().zip(raw).map(of).collect()
}

fn short(name: &str) -> String {
    name.chars().take(100).collect()
}

fn head(input: &InputTensor, limits: &Limits) -> Result<(DType, Vec<u64>, usize), Refusal> {
    let name = short(&input.name);
    let kind = datatype(&name, &input.datatype)?;
    let shape = input.shape.iter().map(|&d| u64::try_from(d)).collect::<Result<Vec<_>, _>>();
    let shape = shape.map_err(|_| Refusal::bad(format!("input {name:?}: its shape has a negative size")))?;
    let elements = count(&name, &shape, limits)?;
    Ok((kind, shape, elements))
}

fn typed(input: InputTensor, limits: &Limits) -> Result<TensorData, Refusal> {
    let (kind, shape, elements) = head(&input, limits)?;
    let name = short(&input.name);
    let contents =
        input.contents.as_ref().ok_or_else(|| Refusal::bad(format!("input {name:?} has no contents")))?;
    let data = bytes(kind, contents).ok_or_else(|| {
        Refusal::bad(format!("input {name:?}: its contents are no {} values", kind.as_str()))
    })?;
    fits(&name, kind, &data, elements)?;
    Ok(TensorData { name: input.name, datatype: kind, shape, data: data.into() })
}

/// Little-endian bytes of typed contents; `None` if a value does not fit the type. `FP16` has no typed form.
fn bytes(kind: DType, c: &Contents) -> Option<Vec<u8>> {
    fn le<T: Copy, U, const N: usize>(values: &[T], to: impl Fn(U) -> [u8; N]) -> Option<Vec<u8>>
    where
        U: TryFrom<T>,
    {
        values.iter().try_fold(Vec::with_capacity(values.len() * N), |mut all, &value| {
            all.extend(to(U::try_from(value).ok()?));
            Some(all)
        })
    }
    match kind {
        DType::Bool => Some(c.bools.iter().map(|&b| u8::from(b)).collect()),
        DType::Int8 => le(&c.ints, i8::to_le_bytes),
        DType::Int16 => le(&c.ints, i16::to_le_bytes),
        DType::Int32 => le(&c.ints, i32::to_le_bytes),
        DType::Int64 => le(&c.int64s, i64::to_le_bytes),
        DType::Uint8 => le(&c.uints, u8::to_le_bytes),
        DType::Uint16 => le(&c.uints, u16::to_le_bytes),
        DType::Uint32 => le(&c.uints, u32::to_le_bytes),
        DType::Uint64 => le(&c.uint64s, u64::to_le_bytes),
        DType::Fp32 => le(&c.fp32s, f32::to_le_bytes),
        DType::Fp64 => le(&c.fp64s, f64::to_le_bytes),
        DType::Fp16 => None,
        DType::Bytes => c.texts.iter().try_fold(Vec::new(), |mut all, text| {
            all.extend(u32::try_from(text.len()).ok()?.to_le_bytes());
            all.extend_from_slice(text);
            Some(all)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(kind: &str, shape: &[i64], contents: Option<Contents>) -> InputTensor {
        InputTensor {
            name: "x".into(),
            datatype: kind.into(),
            shape: shape.to_vec(),
            contents,
            ..InputTensor::default()
        }
    }

    fn read(one: InputTensor, raw: &[&'static [u8]]) -> Result<Vec<u8>, String> {
        let raw = raw.iter().map(|bytes| Bytes::from_static(bytes)).collect();
        inputs(vec![one], raw, &Limits::default())
            .map(|tensors| tensors[0].data.0.clone())
            .map_err(|refusal| refusal.error)
    }

    #[test]
    fn typed_and_raw_contents_give_the_same_bytes() {
        let ints = Contents { ints: vec![-1, 127], ..Contents::default() };
        assert_eq!(read(input("INT8", &[2], Some(ints.clone())), &[]), Ok(vec![255, 127]));
        assert_eq!(
            read(input("INT16", &[2], Some(ints)), &[]),
            read(input("INT16", &[2], None), &[&[255, 255, 127, 0]])
        );
        let texts = Contents { texts: vec![Bytes::from_static(b"ab")], ..Contents::default() };
        assert_eq!(
            read(input("BYTES", &[1], Some(texts)), &[]),
            read(input("BYTES", &[1], None), &[b"\x02\0\0\0ab"])
        );
        assert_eq!(read(input("FP16", &[1], None), &[&[0, 60]]), Ok(vec![0, 60]));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let fp32 = |n| Some(Contents { fp32s: vec![0.5; n], ..Contents::default() });
        for (input, raw, problem) in [
            (
                input("INT8", &[1], Some(Contents { ints: vec![128], ..Contents::default() })),
                &[][..],
                "no INT8",
            ),
            (input("FP32", &[2], fp32(1)), &[], "not 2 values"),
            (input("FP32", &[1], None), &[], "no contents"),
            (input("FP32", &[-1], fp32(1)), &[], "negative"),
            (input("FP32", &[i64::MAX, 4], fp32(1)), &[], "too large"),
            (input("BF16", &[1], None), &[&[0u8, 0][..]], "FP32"),
            (input("FP32", &[1], fp32(1)), &[&[0u8; 4][..]], "beside"),
            (input("FP32", &[1], None), &[&[0u8; 3][..]], "not 1 values"),
            (input("FP32", &[1], None), &[&[0u8; 4][..], &[0u8; 4][..]], "one for each"),
            (input("BYTES", &[1], None), &[&[9u8, 0, 0, 0][..]], "not 1 values"),
        ] {
            let error = read(input.clone(), raw).unwrap_err();
            assert!(error.contains(problem), "{input:?}: {error}");
        }
    }
}
