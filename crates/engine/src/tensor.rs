//! Tensors of the protocol to tensors of the runtime and back.

use std::ops::Range;

use dunlin_protocol::{Bytes, DType, TensorData};
use tract_onnx::prelude::f16;
use tract_onnx::tract_hir::internal::{DatumType, Tensor};

use crate::EngineError;

macro_rules! numbers {
    ($bytes:expr, $shape:expr, $kind:ty) => {{
        let values: Vec<$kind> = $bytes
            .as_chunks::<{ size_of::<$kind>() }>()
            .0
            .iter()
            .map(|b| <$kind>::from_le_bytes(*b))
            .collect();
        Tensor::from_shape($shape, &values)
    }};
}

/// A tensor of `shape` from little-endian bytes of exactly that many elements.
pub(crate) fn read(kind: DType, shape: &[usize], bytes: &[u8]) -> Result<Tensor, EngineError> {
    let made = match kind {
        DType::Bool => Tensor::from_shape(shape, &bytes.iter().map(|b| *b != 0).collect::<Vec<_>>()),
        DType::Uint8 => numbers!(bytes, shape, u8),
        DType::Uint16 => numbers!(bytes, shape, u16),
        DType::Uint32 => numbers!(bytes, shape, u32),
        DType::Uint64 => numbers!(bytes, shape, u64),
        DType::Int8 => numbers!(bytes, shape, i8),
        DType::Int16 => numbers!(bytes, shape, i16),
        DType::Int32 => numbers!(bytes, shape, i32),
        DType::Int64 => numbers!(bytes, shape, i64),
        DType::Fp32 => numbers!(bytes, shape, f32),
        DType::Fp64 => numbers!(bytes, shape, f64),
        DType::Fp16 => numbers!(bytes, shape, f16),
        DType::Bytes => {
            return Err(EngineError::Run("BYTES tensors are not taken".into()));
        }
    };
    made.map_err(|e| EngineError::Run(format!("{e:#}")))
}

macro_rules! bytes {
    ($out:expr, $tensor:expr, $kind:ty) => {{
        let plain = $tensor.try_as_plain_ram().map_err(run)?;
        let values = plain.as_slice::<$kind>().map_err(run)?;
        $out.extend(values.iter().flat_map(|x| x.to_le_bytes()));
    }};
}

fn run(e: impl std::fmt::Display) -> EngineError {
    EngineError::Run(format!("{e:#}"))
}

/// Appends the little-endian bytes of `tensor`, cast to `kind`.
pub(crate) fn write(kind: DType, tensor: &Tensor, out: &mut Vec<u8>) -> Result<(), EngineError> {
    let wanted = datum(kind).ok_or_else(|| run(format!("{} tensors are not made", kind.as_str())))?;
    let tensor = tensor.cast_to_dt(wanted).map_err(run)?;
    match kind {
        DType::Bool => {
            let plain = tensor.try_as_plain_ram().map_err(run)?;
            out.extend(plain.as_slice::<bool>().map_err(run)?.iter().map(|b| u8::from(*b)));
        }
        DType::Uint8 => bytes!(out, tensor, u8),
        DType::Uint16 => bytes!(out, tensor, u16),
        DType::Uint32 => bytes!(out, tensor, u32),
        DType::Uint64 => bytes!(out, tensor, u64),
        DType::Int8 => bytes!(out, tensor, i8),
        DType::Int16 => bytes!(out, tensor, i16),
        DType::Int32 => bytes!(out, tensor, i32),
        DType::Int64 => bytes!(out, tensor, i64),
        DType::Fp16 => bytes!(out, tensor, f16),
        DType::Fp32 => bytes!(out, tensor, f32),
        DType::Fp64 => bytes!(out, tensor, f64),
        DType::Bytes => return Err(run("unreachable kinds were refused above")),
    }
    Ok(())
}

/// The runtime's type, if tensors of this type are taken and made.
pub(crate) fn datum(kind: DType) -> Option<DatumType> {
    Some(match kind {
        DType::Bool => DatumType::Bool,
        DType::Uint8 => DatumType::U8,
        DType::Uint16 => DatumType::U16,
        DType::Uint32 => DatumType::U32,
        DType::Uint64 => DatumType::U64,
        DType::Int8 => DatumType::I8,
        DType::Int16 => DatumType::I16,
        DType::Int32 => DatumType::I32,
        DType::Int64 => DatumType::I64,
        DType::Fp32 => DatumType::F32,
        DType::Fp16 => DatumType::F16,
        DType::Fp64 => DatumType::F64,
        DType::Bytes => return None,
    })
}

/// The protocol's type of a runtime type; symbolic integers (labels that come out of `ArgMax`) count as `INT64`.
pub(crate) fn dtype(datum: DatumType) -> Option<DType> {
    if datum == DatumType::TDim {
        return Some(DType::Int64);
    }
    DType::ALL.into_iter().find(|kind| self::datum(*kind) == Some(datum))
}

/// The values of an `FP16`, `FP32` or `FP64` tensor; `None` if it is of another type.
pub fn floats(tensor: &TensorData) -> Option<Vec<f32>> {
    match tensor.datatype {
        DType::Fp16 => {
            Some(tensor.data.0.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect())
        }
        DType::Fp32 => {
            Some(tensor.data.0.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        }
        DType::Fp64 => {
            Some(tensor.data.0.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect())
        }
        DType::Bool
        | DType::Uint8
        | DType::Uint16
        | DType::Uint32
        | DType::Uint64
        | DType::Int8
        | DType::Int16
        | DType::Int32
        | DType::Int64
        | DType::Bytes => None,
    }
}

/// Rows `part` of a tensor; `None` if it has not so many, or if they are of any length, as those of text are.
pub fn some_rows(tensor: &TensorData, part: Range<usize>) -> Option<TensorData> {
    tensor.datatype.size()?;
    let (&rows, inner) = tensor.shape.split_first()?;
    let length = tensor.data.0.len() / usize::try_from(rows).ok()?.max(1);
    Some(TensorData {
        name: tensor.name.clone(),
        datatype: tensor.datatype,
        shape: [&[part.len() as u64], inner].concat(),
        data: Bytes(tensor.data.0.get(part.start * length..part.end * length)?.to_vec()),
    })
}

/// Appends rows to a tensor; `None`, and nothing is appended, if they are of another type or shape.
pub fn append_rows(all: &mut TensorData, more: &TensorData) -> Option<()> {
    let (rows, inner) = all.shape.split_first_mut()?;
    let (more_rows, more_inner) = more.shape.split_first()?;
    if all.datatype != more.datatype || *inner != *more_inner {
        return None;
    }
    *rows += more_rows;
    all.data.0.extend_from_slice(&more.data.0);
    Some(())
}

/// An `FP32` tensor of `values`.
pub fn of_floats(name: &str, shape: &[u64], values: &[f32]) -> TensorData {
    let data = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    TensorData { name: name.to_owned(), datatype: DType::Fp32, shape: shape.to_vec(), data: Bytes(data) }
}

/// A tensor of a type of numbers or truth values from `values`, each the nearest that the type holds; what is not zero is true.
/// `None` for `BYTES`.
pub fn of_numbers(name: &str, datatype: DType, shape: &[u64], values: &[f64]) -> Option<TensorData> {
    macro_rules! rounded {
        ($kind:ty) => {
            values.iter().flat_map(|x| (x.round() as $kind).to_le_bytes()).collect()
        };
    }
    let data = match datatype {
        DType::Bool => values.iter().map(|x| u8::from(*x != 0.0)).collect(),
        DType::Uint8 => rounded!(u8),
        DType::Uint16 => rounded!(u16),
        DType::Uint32 => rounded!(u32),
        DType::Uint64 => rounded!(u64),
        DType::Int8 => rounded!(i8),
        DType::Int16 => rounded!(i16),
        DType::Int32 => rounded!(i32),
        DType::Int64 => rounded!(i64),
        DType::Fp16 => values.iter().flat_map(|x| f16::from_f64(*x).to_le_bytes()).collect(),
        DType::Fp32 => values.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect(),
        DType::Fp64 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::Bytes => return None,
    };
    Some(TensorData { name: name.to_owned(), datatype, shape: shape.to_vec(), data: Bytes(data) })
}
