//! Tensors as JSON arrays, flat or nested, row-major.

use std::fmt::{self, Write};

use dunlin_protocol::{DType, TensorData};
use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, SeqAccess, Visitor};
use serde_json::Value;

/// Deepest nesting of arrays; the rank of the largest tensors models take.
const DEPTH_MAX: usize = 16;

/// The little-endian bytes of exactly `elements` values, read from the text of an array. Beside that text they are all
/// that is held: at most four bytes for each of its bytes.
///
/// # Errors
/// What is wrong with them, for people.
pub fn read(kind: DType, text: &str, elements: usize) -> Result<Vec<u8>, String> {
    if kind == DType::Fp16 {
        return Err("FP16 has no JSON form, send it as binary".into());
    }
    // A value and what parts it from the next are two bytes or more, whatever the shape promises.
    let room = elements.min(text.len() / 2 + 1);
    let out = Vec::with_capacity(kind.size().unwrap_or(1) * room);
    let mut values = Values { kind, elements, out, count: 0 };
    let mut from = serde_json::Deserializer::from_str(text);
    let read = Nested { values: &mut values, depth: DEPTH_MAX }.deserialize(&mut from);
    read.and_then(|()| from.end()).map_err(|e| e.to_string())?;
    let Values { out, count, .. } = values;
    if count == elements { Ok(out) } else { Err(format!("{count} values where the shape has {elements}")) }
}

/// What has been read.
struct Values {
    kind: DType,
    elements: usize,
    out: Vec<u8>,
    count: usize,
}

impl Values {
    fn push<E: Error>(&mut self, value: Scalar<'_>) -> Result<(), E> {
        if self.count == self.elements {
            return Err(E::custom(format_args!("more values than the {} of the shape", self.elements)));
        }
        self.count += 1;
        value
            .push(self.kind, &mut self.out)
            .ok_or_else(|| E::custom(format_args!("{} is no {}", value.shown(), self.kind.as_str())))
    }
}

/// A value, or an array of what may be nested so deep.
struct Nested<'a> {
    values: &'a mut Values,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Nested<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Nested<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an array of {} values", self.values.kind.as_str())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Some(depth) = self.depth.checked_sub(1) else {
            return Err(A::Error::custom("its data is nested too deep"));
        };
        while items.next_element_seed(Nested { values: self.values, depth })?.is_some() {}
        Ok(())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.values.push(Scalar::Bool(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.values.push(Scalar::Unsigned(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.values.push(Scalar::Signed(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.values.push(Scalar::Float(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.values.push(Scalar::Text(value))
    }
}

/// One value.
#[derive(Debug, Clone, Copy)]
enum Scalar<'a> {
    Bool(bool),
    Unsigned(u64),
    /// Below zero.
    Signed(i64),
    Float(f64),
    Text(&'a str),
}

impl<'a> Scalar<'a> {
    fn of(value: &'a Value) -> Option<Self> {
        match value {
            Value::Bool(value) => Some(Self::Bool(*value)),
            Value::Number(n) => n
                .as_u64()
                .map(Self::Unsigned)
                .or(n.as_i64().map(Self::Signed))
                .or(n.as_f64().map(Self::Float)),
            Value::String(text) => Some(Self::Text(text)),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    }

    fn int(self) -> Option<i64> {
        match self {
            Self::Unsigned(n) => i64::try_from(n).ok(),
            Self::Signed(n) => Some(n),
            Self::Bool(_) | Self::Float(_) | Self::Text(_) => None,
        }
    }

    fn float(self) -> Option<f64> {
        match self {
            Self::Unsigned(n) => Some(n as f64),
            Self::Signed(n) => Some(n as f64),
            Self::Float(x) => Some(x),
            Self::Bool(_) | Self::Text(_) => None,
        }
    }

    fn text(self) -> Option<&'a str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Bool(_) | Self::Unsigned(_) | Self::Signed(_) | Self::Float(_) => None,
        }
    }

    fn bool(self) -> Option<u8> {
        match self {
            Self::Bool(value) => Some(value.into()),
            Self::Unsigned(n) => u8::try_from(n).ok().filter(|n| *n < 2),
            Self::Signed(_) | Self::Float(_) | Self::Text(_) => None,
        }
    }

    fn unsigned(self) -> Option<u64> {
        match self {
            Self::Unsigned(n) => Some(n),
            Self::Bool(_) | Self::Signed(_) | Self::Float(_) | Self::Text(_) => None,
        }
    }

    /// Appends its little-endian bytes; `None` if it is not of that type or does not fit.
    fn push(self, kind: DType, out: &mut Vec<u8>) -> Option<()> {
        match kind {
            DType::Bool => out.push(self.bool()?),
            DType::Uint8 => out.push(u8::try_from(self.int()?).ok()?),
            DType::Int8 => out.extend(i8::try_from(self.int()?).ok()?.to_le_bytes()),
            DType::Uint16 => out.extend(u16::try_from(self.int()?).ok()?.to_le_bytes()),
            DType::Int16 => out.extend(i16::try_from(self.int()?).ok()?.to_le_bytes()),
            DType::Uint32 => out.extend(u32::try_from(self.int()?).ok()?.to_le_bytes()),
            DType::Int32 => out.extend(i32::try_from(self.int()?).ok()?.to_le_bytes()),
            DType::Uint64 => out.extend(self.unsigned()?.to_le_bytes()),
            DType::Int64 => out.extend(self.int()?.to_le_bytes()),
            DType::Fp32 => {
                out.extend(Some(self.float()? as f32).filter(|x| x.is_finite())?.to_le_bytes());
            }
            DType::Fp64 => out.extend(self.float()?.to_le_bytes()),
            DType::Bytes => {
                let text = self.text()?;
                out.extend(u32::try_from(text.len()).ok()?.to_le_bytes());
                out.extend(text.as_bytes());
            }
            DType::Fp16 => return None,
        }
        Some(())
    }

    /// For people.
    fn shown(self) -> String {
        let text = match self {
            Self::Bool(value) => value.to_string(),
            Self::Unsigned(n) => n.to_string(),
            Self::Signed(n) => n.to_string(),
            Self::Float(x) => x.to_string(),
            Self::Text(text) => format!("{:?}", text.chars().take(40).collect::<String>()),
        };
        text.chars().take(40).collect()
    }
}

/// Appends the little-endian bytes of one value; `None` if it is not of that type or does not fit.
pub fn push(kind: DType, value: &Value, out: &mut Vec<u8>) -> Option<()> {
    Scalar::of(value)?.push(kind, out)
}

macro_rules! list {
    ($out:expr, $bytes:expr, $kind:ty) => {
        for (i, b) in $bytes.as_chunks::<{ size_of::<$kind>() }>().0.iter().enumerate() {
            // Writing to a string does not fail.
            let _infallible = write!($out, "{}{}", if i == 0 { "" } else { "," }, <$kind>::from_le_bytes(*b));
        }
    };
}

/// Appends the values as a flat array. Floats are written with the fewest digits that read back the same; values
/// that JSON has no number for are written as `null`.
///
/// # Errors
/// `FP16` and text that is not UTF-8 have no JSON form.
pub fn write(tensor: &TensorData, out: &mut String) -> Result<(), String> {
    let bytes = tensor.data.as_slice();
    out.push('[');
    match tensor.datatype {
        DType::Bool => {
            let words: Vec<&str> = bytes.iter().map(|b| if *b == 0 { "false" } else { "true" }).collect();
            out.push_str(&words.join(","));
        }
        DType::Uint8 => list!(out, bytes, u8),
        DType::Uint16 => list!(out, bytes, u16),
        DType::Uint32 => list!(out, bytes, u32),
        DType::Uint64 => list!(out, bytes, u64),
        DType::Int8 => list!(out, bytes, i8),
        DType::Int16 => list!(out, bytes, i16),
        DType::Int32 => list!(out, bytes, i32),
        DType::Int64 => list!(out, bytes, i64),
        DType::Fp32 => {
            floats(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)), f32::is_finite, out)
        }
        DType::Fp64 => {
            floats(bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)), f64::is_finite, out)
        }
        DType::Fp16 => return Err("FP16 has no JSON form, ask for it as binary".into()),
        DType::Bytes => {
            for (i, element) in elements(bytes).enumerate() {
                let text = element.and_then(|element| std::str::from_utf8(element).ok());
                let text = text.ok_or("it is no text in UTF-8, ask for it as binary")?;
                let _infallible = write!(out, "{}{}", if i == 0 { "" } else { "," }, Value::from(text));
            }
        }
    }
    out.push(']');
    Ok(())
}

/// The elements of a `BYTES` tensor, each behind its length in four bytes; `None` where the bytes end too early.
pub fn elements(mut rest: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let split = rest.split_first_chunk::<4>().and_then(|(length, after)| {
            after.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)
        });
        let Some((element, after)) = split else {
            rest = &[];
            return Some(None);
        };
        rest = after;
        Some(Some(element))
    })
}

fn floats<T: std::fmt::Debug + Copy>(
    values: impl Iterator<Item = T>,
    finite: impl Fn(T) -> bool,
    out: &mut String,
) {
    for (i, x) in values.enumerate() {
        if i > 0 {
            out.push(',');
        }
        if finite(x) {
            let _infallible = write!(out, "{x:?}");
        } else {
            out.push_str("null");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: DType, data: &Value, elements: usize) -> Result<Vec<u8>, String> {
        super::read(kind, &data.to_string(), elements)
    }

    #[test]
    fn nested_and_flat_are_the_same() {
        let nested = serde_json::json!([[1, 2.5], [3, 4]]);
        let flat = serde_json::json!([1, 2.5, 3, 4]);
        assert_eq!(read(DType::Fp32, &nested, 4), read(DType::Fp32, &flat, 4));
        assert!(read(DType::Fp32, &flat, 5).unwrap_err().contains("4 values where the shape has 5"));
        assert!(read(DType::Fp32, &flat, 3).unwrap_err().contains("more values than the 3"));
    }

    #[test]
    fn values_that_do_not_fit_their_type_are_refused() {
        for (kind, value) in [
            (DType::Uint8, serde_json::json!(256)),
            (DType::Uint8, serde_json::json!(-1)),
            (DType::Int32, serde_json::json!(1.5)),
            (DType::Fp32, serde_json::json!("1")),
            (DType::Bool, serde_json::json!(2)),
            (DType::Fp16, serde_json::json!(1)),
            (DType::Fp32, serde_json::json!(1e300)),
            (DType::Bytes, serde_json::json!(1)),
            (DType::Int64, serde_json::json!(u64::MAX)),
            (DType::Uint64, serde_json::json!(-1)),
            (DType::Fp32, Value::Null),
            (DType::Fp32, serde_json::json!({})),
        ] {
            assert!(read(kind, &serde_json::json!([value]), 1).is_err(), "{kind:?} {value}");
        }
        let deep = (0..20).fold(serde_json::json!(1), |inner, _| serde_json::json!([inner]));
        assert!(read(DType::Fp32, &deep, 1).is_err());
    }

    #[test]
    fn floats_read_back_the_same() {
        for x in [0.1_f32, 1e-30, 3.4e38, -0.0, 7.0] {
            let tensor = crate::of_floats("x", &[1], &[x]);
            let mut text = String::new();
            write(&tensor, &mut text).unwrap();
            let value: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(read(DType::Fp32, &value, 1).unwrap(), x.to_le_bytes(), "{text}");
        }
    }

    #[test]
    fn text_is_written_as_it_was_read() {
        let words = serde_json::json!(["", "a\"b", "äöü"]);
        let data = read(DType::Bytes, &words, 3).unwrap();
        assert_eq!(&data[..5], [0, 0, 0, 0, 3]);
        let mut tensor =
            TensorData { name: "x".into(), datatype: DType::Bytes, shape: vec![3], data: data.into() };
        let mut text = String::new();
        write(&tensor, &mut text).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), words);
        tensor.data = vec![1, 0, 0, 0, 0xff].into();
        assert!(write(&tensor, &mut String::new()).is_err());
        assert_eq!(elements(&[2, 0, 0, 0, 1]).collect::<Vec<_>>(), [None]);
        assert_eq!(elements(&[1, 0, 0]).collect::<Vec<_>>(), [None]);
    }
}
