//! A perceptron in candle. Its CPU device can not be seeded and its variable map has no order, so weights,
//! batches and the optimiser's variables are made here, in a fixed order from our own random numbers.
use candle_core::{Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};

use crate::LearnError;
use crate::data::Table;
use crate::onnx::{Graph, OUTPUT, int};
use crate::rng::Rng;
use crate::scaling::Scaling;

use super::{Fit, softmax};

/// Rows per step.
const BATCH: usize = 32;

#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) hidden: Vec<usize>,
    pub(super) rate: f64,
    pub(super) epochs: usize,
    pub(super) decay: f64,
}

#[derive(Debug)]
struct Layer {
    /// `[inputs, outputs]`.
    weights: Var,
    bias: Var,
}

#[derive(Debug)]
pub(super) struct Mlp {
    scaling: Scaling,
    classes: usize,
    layers: Vec<Layer>,
}

pub(super) fn fit(table: &Table, plan: &Plan, seed: u64) -> Result<Mlp, LearnError> {
    let scaling = Scaling::of(table);
    let x = scaling.apply(&table.x);
    let widths: Vec<usize> =
        [table.width].into_iter().chain(plan.hidden.iter().copied()).chain([table.classes]).collect();
    let mut init = Rng::new(seed, "mlp init");
    let layers =
        widths.windows(2).map(|pair| layer(pair[0], pair[1], &mut init)).collect::<Result<Vec<_>, _>>()?;
    let mut model = Mlp { scaling, classes: table.classes, layers };
    let variables =
        model.layers.iter().flat_map(|layer| [layer.weights.clone(), layer.bias.clone()]).collect();
    let parameters = ParamsAdamW { lr: plan.rate, weight_decay: plan.decay, ..ParamsAdamW::default() };
    let mut optimiser = AdamW::new(variables, parameters)?;
    let mut order: Vec<usize> = (0..table.rows()).collect();
    let mut draw = Rng::new(seed, "mlp batches");
    for epoch in 0..plan.epochs {
        // The rate falls linearly to a tenth: late steps settle instead of jumping about.
        optimiser.set_learning_rate(plan.rate * (1.0 - 0.9 * epoch as f64 / plan.epochs as f64));
        draw.shuffle(&mut order);
        for batch in order.chunks(BATCH) {
            model.step(&mut optimiser, &x, &table.y, batch)?;
        }
    }
    Ok(model)
}

fn layer(inputs: usize, outputs: usize, rng: &mut Rng) -> Result<Layer, LearnError> {
    // He's uniform initialisation for ReLU.
    let bound = (6.0 / inputs as f64).sqrt();
    let weights: Vec<f32> =
        (0..inputs * outputs).map(|_| ((rng.unit() * 2.0 - 1.0) * bound) as f32).collect();
    Ok(Layer {
        weights: Var::from_vec(weights, (inputs, outputs), &Device::Cpu)?,
        bias: Var::from_vec(vec![0f32; outputs], outputs, &Device::Cpu)?,
    })
}

impl Mlp {
    fn step(
        &mut self,
        optimiser: &mut AdamW,
        x: &[f32],
        y: &[u32],
        batch: &[usize],
    ) -> Result<(), LearnError> {
        let width = self.scaling.mean.len();
        let rows: Vec<f32> = batch.iter().flat_map(|&i| &x[i * width..(i + 1) * width]).copied().collect();
        let truth: Vec<u32> = batch.iter().map(|&i| y[i]).collect();
        let rows = Tensor::from_vec(rows, (batch.len(), width), &Device::Cpu)?;
        let truth = Tensor::from_vec(truth, batch.len(), &Device::Cpu)?;
        let loss = candle_nn::loss::cross_entropy(&self.margins(&rows)?, &truth)?;
        optimiser.backward_step(&loss)?;
        Ok(())
    }

    fn margins(&self, rows: &Tensor) -> Result<Tensor, LearnError> {
        let mut value = rows.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            value = value.matmul(layer.weights.as_tensor())?.broadcast_add(layer.bias.as_tensor())?;
            if i + 1 < self.layers.len() {
                value = value.relu()?;
            }
        }
        Ok(value)
    }
}

impl Fit for Mlp {
    fn scores(&self, x: &[f32]) -> Result<Vec<f32>, LearnError> {
        let width = self.scaling.mean.len();
        let rows = Tensor::from_vec(self.scaling.apply(x), (x.len() / width, width), &Device::Cpu)?;
        let mut scores = self.margins(&rows)?.flatten_all()?.to_vec1::<f32>()?;
        softmax(&mut scores, self.classes);
        Ok(scores)
    }

    fn onnx(&self) -> Vec<u8> {
        let mut graph = Graph::default();
        let mut value = graph.scaled(&self.scaling);
        for (i, layer) in self.layers.iter().enumerate() {
            let read = |var: &Var| {
                var.as_tensor()
                    .flatten_all()
                    .and_then(|flat| flat.to_vec1::<f32>())
                    .expect("weights are dense f32 on the CPU")
            };
            let weights = graph.floats(&format!("weights_{i}"), layer.weights.dims(), &read(&layer.weights));
            let bias = graph.floats(&format!("bias_{i}"), layer.bias.dims(), &read(&layer.bias));
            value = graph.node("Gemm", &[&value, &weights, &bias], &format!("sum_{i}"), vec![]);
            if i + 1 < self.layers.len() {
                value = graph.node("Relu", &[&value], &format!("active_{i}"), vec![]);
            }
        }
        graph.node("Softmax", &[&value], OUTPUT, vec![int("axis", 1)]);
        graph.finish("mlp", self.scaling.mean.len(), self.classes)
    }
}
