//! What travels in gRPC messages: bytes that are nothing else, and the calls of an exchange.

use crate::model::limits;
use bytes::{Buf, BufMut, Bytes};
use std::marker::PhantomData;
use std::time::Duration;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

pub(super) trait Message: Sized + Send + Sync + 'static {
    fn write(self, buffer: &mut EncodeBuf<'_>);
    /// Of all that is left; `None` if it is no such message.
    fn read(buffer: &mut DecodeBuf<'_>) -> Option<Self>;
}

impl Message for Bytes {
    fn write(self, buffer: &mut EncodeBuf<'_>) {
        buffer.reserve(self.len());
        buffer.put(self);
    }

    fn read(buffer: &mut DecodeBuf<'_>) -> Option<Self> {
        Some(buffer.copy_to_bytes(buffer.remaining()))
    }
}

/// A call: its number and the ms it may take, in eight bytes each, and what is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) number: u64,
    pub(super) within: Duration,
    pub(super) request: Bytes,
}

impl Call {
    const HEAD: usize = 16;
    pub(super) const REQUEST_MAX: usize = limits::PEER_MESSAGE_BYTES_MAX - Self::HEAD;
}

impl Message for Call {
    fn write(self, buffer: &mut EncodeBuf<'_>) {
        buffer.reserve(Self::HEAD + self.request.len());
        buffer.put_u64(self.number);
        buffer.put_u64(u64::try_from(self.within.as_millis()).unwrap_or(u64::MAX));
        buffer.put(self.request);
    }

    fn read(buffer: &mut DecodeBuf<'_>) -> Option<Self> {
        let number = buffer.try_get_u64().ok()?;
        let within = Duration::from_millis(buffer.try_get_u64().ok()?);
        Some(Self { number, within, request: Bytes::read(buffer)? })
    }
}

/// The call's number in eight bytes, and in one whether the rest is what was asked for (0) or why it is not (1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) number: u64,
    pub(super) outcome: Result<Bytes, String>,
}

impl Answer {
    const HEAD: usize = 9;
    pub(super) const OUTCOME_MAX: usize = limits::PEER_MESSAGE_BYTES_MAX - Self::HEAD;
}

impl Message for Answer {
    fn write(self, buffer: &mut EncodeBuf<'_>) {
        let (kind, rest) = match self.outcome {
            Ok(answer) => (0, answer),
            Err(why) => (1, why.into()),
        };
        buffer.reserve(Self::HEAD + rest.len());
        buffer.put_u64(self.number);
        buffer.put_u8(kind);
        buffer.put(rest);
    }

    fn read(buffer: &mut DecodeBuf<'_>) -> Option<Self> {
        let number = buffer.try_get_u64().ok()?;
        let kind = buffer.try_get_u8().ok()?;
        let rest = Bytes::read(buffer)?;
        let outcome = match kind {
            0 => Ok(rest),
            1 => Err(String::from_utf8_lossy(&rest).into_owned()),
            _ => return None,
        };
        Some(Self { number, outcome })
    }
}

/// Sends the one and receives the other.
#[derive(Debug)]
pub(super) struct Messages<E, D>(PhantomData<fn(E) -> D>);

impl<E, D> Messages<E, D> {
    pub(super) fn new() -> Self {
        Self(PhantomData)
    }
}

impl<E: Message, D: Message> Codec for Messages<E, D> {
    type Encode = E;
    type Decode = D;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::new()
    }

    fn decoder(&mut self) -> Self {
        Self::new()
    }
}

impl<E: Message, D: Message> Encoder for Messages<E, D> {
    type Item = E;
    type Error = Status;

    fn encode(&mut self, item: E, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.write(buffer);
        Ok(())
    }
}

impl<E: Message, D: Message> Decoder for Messages<E, D> {
    type Item = D;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<D>, Status> {
        D::read(buffer).map(Some).ok_or_else(|| Status::invalid_argument("not a message of this stream"))
    }
}
