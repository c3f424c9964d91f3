//! Recent predictions, kept until their labels arrive.

use std::collections::{BTreeMap, VecDeque};

use dunlin_protocol::ReleaseId;

/// Predictions kept a task: an hour at one a second. A label that comes later is refused, which its sender sees.
pub(super) const PREDICTIONS_MAX: usize = 4096;
/// Most values of an input that is kept beside its prediction, so that all of them together stay under 16 MiB.
pub(super) const FEATURES_MAX: usize = 1024;

/// What was answered.
#[derive(Debug, Clone)]
pub(super) struct Prediction {
    pub(super) release: ReleaseId,
    pub(super) predicted: u32,
    /// What the previous champion made of the same input.
    pub(super) other: Option<(ReleaseId, u32)>,
    /// What other members made of it, at most one entry each.
    pub(super) fellows: Vec<(ReleaseId, u32)>,
    /// The input, kept only where samples may leave the device.
    pub(super) x: Vec<f32>,
}

/// The predictions by request id, the oldest forgotten first.
#[derive(Debug, Default)]
pub(super) struct Memory {
    by_id: BTreeMap<String, (u64, Prediction)>,
    order: VecDeque<(u64, String)>,
    next: u64,
}

impl Memory {
    pub(super) fn keep(&mut self, id: String, prediction: Prediction) {
        let turn = self.next;
        self.next += 1;
        self.by_id.insert(id.clone(), (turn, prediction));
        self.order.push_back((turn, id));
        while self.order.len() > PREDICTIONS_MAX {
            let Some((turn, id)) = self.order.pop_front() else { break };
            // An id that was used again belongs to its latest request.
            if self.by_id.get(&id).is_some_and(|(kept, _)| *kept == turn) {
                self.by_id.remove(&id);
            }
        }
    }

    /// The prediction of a request that is still remembered, to add to it.
    pub(super) fn get_mut(&mut self, id: &str) -> Option<&mut Prediction> {
        self.by_id.get_mut(id).map(|(_, prediction)| prediction)
    }

    pub(super) fn get(&self, id: &str) -> Option<&Prediction> {
        self.by_id.get(id).map(|(_, prediction)| prediction)
    }

    pub(super) fn take(&mut self, id: &str) -> Option<Prediction> {
        self.by_id.remove(id).map(|(_, prediction)| prediction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prediction(predicted: u32) -> Prediction {
        Prediction { release: "m@1".parse().unwrap(), predicted, other: None, fellows: vec![], x: vec![] }
    }

    #[test]
    fn the_oldest_are_forgotten_and_a_reused_id_is_its_latest() {
        let mut memory = Memory::default();
        memory.keep("a".into(), prediction(1));
        for i in 0..PREDICTIONS_MAX - 1 {
            memory.keep(format!("n{i}"), prediction(0));
        }
        memory.keep("a".into(), prediction(2));
        assert_eq!(memory.get("a").unwrap().predicted, 2);
        assert_eq!(memory.take("a").unwrap().predicted, 2);
        assert!(memory.take("a").is_none());
        memory.keep("b".into(), prediction(0));
        assert!(memory.get("n0").is_none() && memory.get("n1").is_some());
        assert!(memory.by_id.len() <= PREDICTIONS_MAX);
    }
}
