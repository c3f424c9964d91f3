//! Messages that are looked through before they are taken apart: a field of two bytes on the wire may be a tensor with its
//! names and lists in memory, so that bytes alone bound nothing.

use std::marker::PhantomData;

use bytes::Buf;
use dunlin_protocol::varint;
use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder};

/// What a tensor, a parameter or a name takes beside its text.
const FIELD_BYTES: usize = 512;
/// The same of a text or a number that stands alone.
const VALUE_BYTES: usize = 64;

/// A codec whose messages take no more memory than `bytes_max`, tensors that are given raw not counted: those stay where
/// they were read.
pub(super) struct Frugal<A, Q> {
    bytes_max: usize,
    messages: PhantomData<(A, Q)>,
}

impl<A, Q> Frugal<A, Q> {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, messages: PhantomData }
    }
}

impl<A: Message + 'static, Q: Message + Default + 'static> Codec for Frugal<A, Q> {
    type Encode = A;
    type Decode = Q;
    type Encoder = <ProstCodec<A, Q> as Codec>::Encoder;
    type Decoder = FrugalDecoder<Q>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<A, Q>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        FrugalDecoder { bytes_max: self.bytes_max, decoder: ProstDecoder::default() }
    }
}

pub(super) struct FrugalDecoder<Q> {
    bytes_max: usize,
    decoder: ProstDecoder<Q>,
}

impl<Q: Message + Default> Decoder for FrugalDecoder<Q> {
    type Item = Q;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Q>, Status> {
        // A message lies in one piece, as it is read whole before it is decoded.
        let bytes = Level::Request.bytes(buffer.chunk()).ok_or_else(|| {
            Status::invalid_argument("the message is no protobuf, or has groups, which no message here has")
        })?;
        if bytes > self.bytes_max {
            return Err(Status::out_of_range(format!(
                "the fields of the message would take {bytes} bytes, more than {}: send fewer, or tensors as raw contents",
                self.bytes_max
            )));
        }
        self.decoder.decode(buffer)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.decoder.buffer_settings()
    }
}

/// Where in `ModelInferRequest` a field stands. Other requests are a few names, for which the same is more than enough.
#[derive(Clone, Copy)]
enum Level {
    Request,
    Input,
    Contents,
}

impl Level {
    /// What the fields of a message take in memory; `None` if it is none.
    fn bytes(self, mut message: &[u8]) -> Option<usize> {
        let mut all = 0_usize;
        while !message.is_empty() {
            let key = varint::pull(&mut message)?;
            // Wire types of protobuf's encoding, "Message Structure".
            let length = match key & 7 {
                0 => varint::pull(&mut message).map(|_| 0)?,
                1 => 8,
                2 => varint::pull(&mut message)?,
                5 => 4,
                _ => return None,
            };
            let (value, rest) = message.split_at_checked(usize::try_from(length).ok()?)?;
            message = rest;
            let takes = if key & 7 == 2 { self.field(key >> 3, value)? } else { VALUE_BYTES };
            all = all.saturating_add(takes);
        }
        Some(all)
    }

    /// What a field takes that has a length: a message, a text, or numbers one after the other.
    fn field(self, number: u64, value: &[u8]) -> Option<usize> {
        let wide = value.len().saturating_mul(size_of::<u64>());
        Some(match (self, number) {
            (Self::Request, 5) => Self::Input.bytes(value)?.saturating_add(FIELD_BYTES),
            (Self::Input, 5) => Self::Contents.bytes(value)?.saturating_add(FIELD_BYTES),
            // A shape, and integers, of a byte or more each.
            (Self::Input, 3) | (Self::Contents, 2..=5) => wide,
            (Self::Contents, 1 | 6 | 7) => value.len(),
            (Self::Contents, _) => value.len().saturating_add(VALUE_BYTES),
            (Self::Request, 7) => VALUE_BYTES,
            (Self::Request | Self::Input, _) => value.len().saturating_add(FIELD_BYTES),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::{Contents, InferRequest, InputTensor, Parameter};
    use super::*;

    fn bytes(request: &InferRequest) -> usize {
        Level::Request.bytes(&request.encode_to_vec()).unwrap()
    }

    fn with(contents: Contents) -> InferRequest {
        let input = InputTensor { contents: Some(contents), ..InputTensor::default() };
        InferRequest { inputs: vec![input], ..InferRequest::default() }
    }

    #[test]
    fn short_fields_count_as_what_they_become() {
        let count = 1000;
        assert!(count * size_of::<InputTensor>() > 100 * count);
        let inputs = InferRequest { inputs: vec![InputTensor::default(); count], ..InferRequest::default() };
        assert_eq!(inputs.encoded_len(), 2 * count);
        assert!(bytes(&inputs) >= count * size_of::<InputTensor>());
        let texts = with(Contents { texts: vec![bytes::Bytes::new(); count], ..Contents::default() });
        assert!(bytes(&texts) >= count * size_of::<bytes::Bytes>());
        let numbers = with(Contents { int64s: vec![1; count], ..Contents::default() });
        assert!(bytes(&numbers) >= count * size_of::<i64>());
        let parameters = (0..count).map(|i| (i.to_string(), Parameter::default())).collect();
        let parameters = InferRequest { parameters, ..InferRequest::default() };
        assert!(bytes(&parameters) >= count * size_of::<(String, Parameter)>());
    }

    #[test]
    fn tensors_count_as_their_bytes_or_not_at_all() {
        let count = 100_000;
        let typed = with(Contents { fp32s: vec![0.5; count], ..Contents::default() });
        assert!((4 * count..5 * count).contains(&bytes(&typed)));
        let raw_input_contents = vec![vec![0; 4 * count].into()];
        assert!(bytes(&InferRequest { raw_input_contents, ..InferRequest::default() }) < 1000);
    }

    #[test]
    fn what_is_no_message_is_told_from_one() {
        for wrong in [&[0x0a, 5, 1][..], &[0x0b], &[0x80], &[0xff; 11], &[0x2a, 2, 0x0a, 9], &[0x0f]] {
            assert!(Level::Request.bytes(wrong).is_none(), "{wrong:?}");
        }
    }
}
