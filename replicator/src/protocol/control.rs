//! Control payloads: the hello. The only file that names bincode.
//!
//! The wire form is a structure of its own, apart from [`Hello`], so that renaming or reordering a
//! field in the code cannot change the wire. Fixed-size little-endian integers, an option as one
//! byte (0 or 1) before its value, fields in order: any codec can produce these bytes, and a golden
//! test holds them.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::{Decode, Encode};

use super::frame::CONTROL_LEN_MAX;
use super::message::{Hello, ReplicaClaim};
use crate::types::{
    DataGeneration, InSync, NodeId, ReplicaId, ReplicationProtocol, ResourceId, ViewNumber,
    VolumeId,
};

const CONFIG: Configuration<LittleEndian, Fixint, Limit<CONTROL_LEN_MAX>> =
    bincode::config::standard()
        .with_little_endian()
        .with_fixed_int_encoding()
        .with_limit::<CONTROL_LEN_MAX>();

#[derive(Encode, Decode)]
struct WireHello {
    node: u8,
    resource: u64,
    volume: u16,
    replica: Option<WireClaim>,
    view: u64,
    in_sync_a: bool,
    in_sync_b: bool,
    active: Option<u64>,
    seal: u64,
    boot_id: u128,
    incarnation: u128,
}

#[derive(Encode, Decode)]
struct WireClaim {
    replica: u128,
    data_generation: Option<u128>,
    size_blocks: u64,
    blank: bool,
    zero_proven: bool,
    bitmap_base: Option<u128>,
    dirty_blocks: u64,
    marks_are_coarse: bool,
    inconsistent: bool,
    lost_volatile: bool,
}

/// A hello's payload.
pub(super) fn encode_hello(hello: &Hello) -> Vec<u8> {
    let wire = WireHello {
        node: hello.node.raw(),
        resource: hello.resource.0,
        volume: hello.volume.0,
        replica: hello.replica.as_ref().map(|claim| WireClaim {
            replica: claim.replica.0,
            data_generation: claim.data_generation.map(|id| id.0),
            size_blocks: claim.size_blocks,
            blank: claim.blank,
            zero_proven: claim.zero_proven,
            bitmap_base: claim.bitmap_base.map(|id| id.0),
            dirty_blocks: claim.dirty_blocks,
            marks_are_coarse: claim.marks_are_coarse,
            inconsistent: claim.inconsistent,
            lost_volatile: claim.lost_volatile,
        }),
        view: hello.view.0,
        in_sync_a: hello.in_sync.a,
        in_sync_b: hello.in_sync.b,
        active: hello.active.map(|view| view.0),
        seal: hello.seal.0,
        boot_id: hello.boot_id,
        incarnation: hello.incarnation,
    };
    bincode::encode_to_vec(&wire, CONFIG).expect("a hello has no variable part")
}

/// The hello in a payload, with what the frame's flags say; `None` if it is none, too, when bytes
/// are left over.
pub(super) fn decode_hello(payload: &[u8], protocol: ReplicationProtocol) -> Option<Hello> {
    let (wire, used) = bincode::decode_from_slice::<WireHello, _>(payload, CONFIG).ok()?;
    if used != payload.len() {
        return None;
    }
    Some(Hello {
        node: NodeId::from_raw(wire.node).filter(|node| node.is_data())?,
        resource: ResourceId(wire.resource),
        volume: VolumeId(wire.volume),
        replica: wire.replica.map(|claim| ReplicaClaim {
            replica: ReplicaId(claim.replica),
            data_generation: claim.data_generation.map(DataGeneration),
            size_blocks: claim.size_blocks,
            blank: claim.blank,
            zero_proven: claim.zero_proven,
            bitmap_base: claim.bitmap_base.map(ReplicaId),
            dirty_blocks: claim.dirty_blocks,
            marks_are_coarse: claim.marks_are_coarse,
            inconsistent: claim.inconsistent,
            lost_volatile: claim.lost_volatile,
        }),
        view: ViewNumber::from_raw(wire.view)?,
        in_sync: InSync {
            a: wire.in_sync_a,
            b: wire.in_sync_b,
        },
        active: match wire.active {
            Some(raw) => Some(ViewNumber::from_raw(raw)?),
            None => None,
        },
        seal: ViewNumber::from_raw(wire.seal)?,
        boot_id: wire.boot_id,
        incarnation: wire.incarnation,
        protocol,
    })
}
