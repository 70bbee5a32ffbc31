//! What the two data nodes say to each other: values here, bytes in the codec.

pub mod message;

pub use message::{
    DataKind, Hello, Message, MessageKind, Refusal, ReplicaClaim, ResyncReply, WriteId,
};
