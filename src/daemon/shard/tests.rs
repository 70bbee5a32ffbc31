//! The shard with everything real but the controller, whose part the tests play: engines, disks,
//! NBD clients over the Unix socket, and a second shard behind TCP.

mod block_status;
mod clients;
mod doors;
mod faulty;
mod letting_go;
mod opening;
mod pair;
mod rig;
mod secured;
mod volumes;
