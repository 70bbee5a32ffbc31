//! What a scenario does to the nodes of its world, besides starting, killing and cutting them off.

use replicator::types::VoterId;

use super::World;

impl World {
    pub(crate) fn pause(&mut self, index: usize, paused: bool) {
        self.nodes[index].paused = paused;
    }

    pub(crate) fn wipe_store(&mut self, index: usize) {
        assert!(self.nodes[index].controller.is_none());
        self.nodes[index].durable.clear();
        self.nodes[index].voter = VoterId(900 + index as u128);
        // A store begins at a number that no life had.
        self.nodes[index].incarnation += 1_000;
    }

    pub(crate) fn break_store(&mut self, index: usize, broken: bool) {
        self.nodes[index].store_broken = broken;
    }

    pub(crate) fn break_drain(&mut self, index: usize) {
        self.nodes[index].engine.drain_fails = true;
    }
}
