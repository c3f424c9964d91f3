//! Constants of a file as lists of numbers.

use tract_onnx::pb::TensorProto;
use tract_onnx::pb::tensor_proto::DataType;

/// The values of an integer tensor of any width.
#[allow(clippy::wildcard_enum_match_arm, reason = "the enum is ONNX's; the other types hold no integers")]
pub(crate) fn ints(tensor: &TensorProto) -> Option<Vec<i64>> {
    let raw = tensor.raw_data.as_slice();
    let typed = || tensor.int32_data.iter().map(|&n| i64::from(n)).collect();
    macro_rules! wide {
        ($kind:ty) => {
            raw.as_chunks::<{ size_of::<$kind>() }>()
                .0
                .iter()
                .map(|b| i64::from(<$kind>::from_le_bytes(*b)))
                .collect()
        };
    }
    Some(match DataType::try_from(tensor.data_type).ok()? {
        DataType::Int64 if raw.is_empty() => tensor.int64_data.clone(),
        DataType::Int64 => wide!(i64),
        DataType::Int8 | DataType::Uint8 | DataType::Int16 | DataType::Uint16 | DataType::Int32
            if raw.is_empty() =>
        {
            typed()
        }
        DataType::Int8 => wide!(i8),
        DataType::Uint8 => wide!(u8),
        DataType::Int16 => wide!(i16),
        DataType::Uint16 => wide!(u16),
        DataType::Int32 => wide!(i32),
        _ => return None,
    })
}

/// The values of a float tensor.
#[allow(clippy::wildcard_enum_match_arm, reason = "the enum is ONNX's; the other types hold no floats")]
pub(super) fn floats(tensor: &TensorProto) -> Option<Vec<f64>> {
    let raw = tensor.raw_data.as_slice();
    Some(match DataType::try_from(tensor.data_type).ok()? {
        DataType::Float if raw.is_empty() => tensor.float_data.iter().map(|&x| f64::from(x)).collect(),
        DataType::Float => raw.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
        DataType::Double if raw.is_empty() => tensor.double_data.clone(),
        DataType::Double => raw.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        _ => return None,
    })
}
