//! The ops, with the bytes and FLOPs that each cannot avoid. `N` is the tokens of one side of a row: a prompt of 64 and two answers of 192.

use crate::floors::Traffic;
use crate::random::{random_tokens, random_values};
use crate::shapes;
use anyhow::Result;
use candle_core::{Device, Tensor};
use mpo::config::{ComputeDtype, OptimizerConfig};
use mpo::data::batch::Segment;
use mpo::model::decoder::{Decoder, Purpose};
use mpo::ops::activation::{self, Activation};
use mpo::ops::attention::{self, Attention};
use mpo::ops::log_prob::{Head, TokenTarget};
use mpo::ops::rms_norm::{NormStyle, RmsNorm};
use mpo::ops::rope::{RopeTable, Turn};
use mpo::ops::{embedding, linear, update};
use mpo::train::clip::gradient_norm;
use mpo::train::optimizer::AdamW;
use mpo::train::step::StepMemory;
use std::rc::Rc;

const N: usize = 64 + 2 * 192;
const HIDDEN: usize = 576;
const MIDDLE: usize = 1536;
const VOCABULARY: usize = 49_152;
const HEADS: Attention = Attention { n_heads: 9, n_kv_heads: 3, head_dim: 64, scale: 0.125, window: None, soft_cap: None };
/// Query, key and value heads side by side.
const QKV: usize = (9 + 2 * 3) * 64;
const N_RESPONSE: usize = 2 * 192;

/// One op under one setting.
pub struct Case {
    pub name: String,
    pub traffic: Traffic,
    pub flops: f64,
    /// Of the products that the FLOPs are in.
    pub dtype: ComputeDtype,
    pub run: Box<dyn FnMut() -> Result<()>>,
}

/// Made one after the other, so that only one family's tensors exist at a time.
pub const FAMILIES: [fn() -> Result<Vec<Case>>; 7] = [linear_maps, elementwise, ropes, attentions, embeddings, heads, optimizer];

fn case(name: impl Into<String>, traffic: Traffic, flops: f64, run: impl FnMut() -> Result<()> + 'static) -> Case {
    Case { name: name.into(), traffic, flops, dtype: ComputeDtype::F32, run: Box::new(run) }
}

/// Values in a tensor, four bytes each.
fn floats(n: usize) -> usize {
    4 * n
}

fn random(seed: u64, shape: &[usize]) -> Result<Tensor> {
    Ok(Tensor::from_vec(random_values(seed, shape.iter().product()), shape, &Device::Cpu)?)
}

fn linear_maps() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let projections = [("qkv", QKV, HIDDEN), ("output", HIDDEN, HIDDEN), ("gate_up", 2 * MIDDLE, HIDDEN), ("down", HIDDEN, MIDDLE)];
    for dtype in [ComputeDtype::F32, ComputeDtype::Bf16] {
        let dtype_name = if dtype == ComputeDtype::F32 { "f32" } else { "bf16" };
        for (name, n_out, n_in) in projections {
            let (x, dy, weight) = (random(1, &[N, n_in])?, random(2, &[N, n_out])?, random(3, &[n_out, n_in])?);
            let gradient = random(4, &[n_out, n_in])?;
            let [x_bytes, y_bytes, weight_bytes] = [N * n_in, N * n_out, n_out * n_in].map(floats);
            let flops = 2.0 * (N * n_in * n_out) as f64;
            let mut add = |what: &str, traffic, run: Box<dyn FnMut() -> Result<()>>| {
                cases.push(Case { name: format!("linear {name} {dtype_name} {what}"), traffic, flops, dtype, run })
            };
            let (x2, dy2, weight2) = (x.clone(), dy.clone(), weight.clone());
            add(
                "forward",
                Traffic { read: x_bytes + weight_bytes, updated: 0, written: y_bytes },
                Box::new(move || linear::forward(&x2, &weight2, None, dtype).map(drop)),
            );
            add(
                "backward input",
                Traffic { read: y_bytes + weight_bytes, updated: 0, written: x_bytes },
                Box::new(move || linear::backward_input(&dy2, &weight, dtype).map(drop)),
            );
            add(
                "backward weight",
                Traffic { read: x_bytes + y_bytes, updated: weight_bytes, written: 0 },
                Box::new(move || linear::backward_weight(&dy, &x, &gradient, dtype)),
            );
        }
    }
    Ok(cases)
}

/// Norm, the MLP's middle, and the residual's addition.
fn elementwise() -> Result<Vec<Case>> {
    let (x, dy) = (random(1, &[N, HIDDEN])?, random(2, &[N, HIDDEN])?);
    let (weight, gradient) = (random(3, &[HIDDEN])?, random(4, &[HIDDEN])?);
    let rows = floats(N * HIDDEN);
    fn norm(weight: &Tensor) -> RmsNorm<'_> {
        RmsNorm { weight, eps: 1e-5, style: NormStyle::Plain }
    }
    let (_, r) = norm(&weight).forward(&x)?;
    let norm_cases = {
        let [(x1, w1), (x2, w2), (x3, w3)] = [(); 3].map(|()| (x.clone(), weight.clone()));
        let (dy, r2) = (dy.clone(), r.clone());
        [
            case("rms_norm forward", Traffic { read: rows, updated: 0, written: rows }, 0.0, move || norm(&w1).forward(&x1).map(drop)),
            case("rms_norm recompute", Traffic { read: rows, updated: 0, written: rows }, 0.0, move || {
                norm(&w2).recompute(&x2, &r2).map(drop)
            }),
            case("rms_norm backward", Traffic { read: 2 * rows, updated: 0, written: rows }, 0.0, move || {
                norm(&w3).backward(&x3, &r, &dy, Some(&gradient)).map(drop)
            }),
        ]
    };
    let (gate_up, d_middle) = (random(5, &[N, 2 * MIDDLE])?, random(6, &[N, MIDDLE])?);
    let (gate_up2, middle) = (gate_up.clone(), floats(N * MIDDLE));
    let activation_cases = [
        case("activation forward", Traffic { read: 2 * middle, updated: 0, written: middle }, 0.0, move || {
            activation::forward(&gate_up, Activation::Silu).map(drop)
        }),
        case("activation backward", Traffic { read: 3 * middle, updated: 0, written: 2 * middle }, 0.0, move || {
            activation::backward(&gate_up2, &d_middle, Activation::Silu).map(drop)
        }),
    ];
    let residual = case("residual add", Traffic { read: rows, updated: rows, written: 0 }, 0.0, move || linear::accumulate(&x, &dy));
    Ok(norm_cases.into_iter().chain(activation_cases).chain([residual]).collect())
}

fn ropes() -> Result<Vec<Case>> {
    let frequencies: Vec<f32> = (0..HEADS.head_dim / 2).map(|i| 1e5f32.powf(-2.0 * i as f32 / HEADS.head_dim as f32)).collect();
    let positions: Vec<u32> = (0..N as u32).collect();
    let table = Rc::new(RopeTable::new(&frequencies, &positions));
    let n_heads = HEADS.n_heads + HEADS.n_kv_heads;
    // Queries and keys turn, values stay.
    let traffic = Traffic { read: floats(N * HEADS.head_dim), updated: floats(N * n_heads * HEADS.head_dim), written: 0 };
    let turns = [("rope forward", Turn::Forward), ("rope backward", Turn::Backward)];
    let turned = turns.map(|(name, turn)| {
        let (table, qkv) = (table.clone(), random(1, &[N, QKV])?);
        Ok(case(name, traffic, 0.0, move || update(&qkv, |rows| table.turn(rows, QKV, 0, n_heads, turn))))
    });
    turned.into_iter().collect()
}

/// The forest of one side, and single sequences.
fn attentions() -> Result<Vec<Case>> {
    let segment = |rows, parent| Segment { rows, parent, sees_itself: true };
    let forest = vec![segment(0..64, None), segment(64..256, Some(0)), segment(256..448, Some(0))];
    let single = |n: usize| vec![segment(0..n, None)];
    let settings = [
        ("2 x 256, shared prompt", forest, HEADS),
        ("256", single(256), HEADS),
        ("1024", single(1024), HEADS),
        ("1024 soft cap", single(1024), Attention { soft_cap: Some(50.0), ..HEADS }),
        ("2048", single(2048), HEADS),
        ("2048 window 512", single(2048), Attention { window: Some(512), ..HEADS }),
    ];
    let mut cases = Vec::new();
    for (name, segments, attention) in settings {
        let n = segments.last().map_or(0, |segment| segment.rows.end);
        let qkv = random(1, &[n, QKV])?;
        let d_out = random(2, &[n, attention.n_heads * attention.head_dim])?;
        let (out, lse) = attention::forward(&qkv, &segments, &attention)?;
        let [qkv_bytes, out_bytes] = [n * QKV, n * attention.n_heads * attention.head_dim].map(floats);
        // Scores and output forward; scores again, dV, dP, dQ and dK backward.
        let product = 2.0 * n_visible(&segments, &attention) * (attention.n_heads * attention.head_dim) as f64;
        let (qkv2, segments2) = (qkv.clone(), segments.clone());
        cases.push(case(
            format!("attention {name} forward"),
            Traffic { read: qkv_bytes, updated: 0, written: out_bytes },
            2.0 * product,
            move || attention::forward(&qkv2, &segments2, &attention).map(drop),
        ));
        cases.push(case(
            format!("attention {name} backward"),
            Traffic { read: qkv_bytes + 2 * out_bytes, updated: 0, written: qkv_bytes },
            5.0 * product,
            move || attention::backward(&qkv, &out, &lse, &d_out, &segments, &attention).map(drop),
        ));
    }
    Ok(cases)
}

/// Pairs of a query and a key that it sees.
fn n_visible(segments: &[Segment], attention: &Attention) -> f64 {
    let before = |segment: &Segment| segment.parent.map_or(0, |parent| segments[parent].rows.len());
    let positions = segments.iter().flat_map(|segment| (0..segment.rows.len()).map(move |i| before(segment) + i + 1));
    positions.map(|n| n.min(attention.window.unwrap_or(usize::MAX)) as f64).sum()
}

fn embeddings() -> Result<Vec<Case>> {
    let tokens = Rc::new(random_tokens(1, N, VOCABULARY));
    let (table, gradient, dy) = (random(2, &[VOCABULARY, HIDDEN])?, random(3, &[VOCABULARY, HIDDEN])?, random(4, &[N, HIDDEN])?);
    let (rows, tokens2) = (floats(N * HIDDEN), tokens.clone());
    Ok(vec![
        case("embedding forward", Traffic { read: rows, updated: 0, written: rows }, 0.0, move || {
            embedding::forward(&table, &tokens, 1.0).map(drop)
        }),
        case("embedding backward", Traffic { read: rows, updated: rows, written: 0 }, 0.0, move || {
            embedding::backward(&dy, &tokens2, 1.0, None, &gradient)
        }),
    ])
}

/// The logits are not counted as bytes: a head need not write them to memory.
fn heads() -> Result<Vec<Case>> {
    let tokens = random_tokens(1, N_RESPONSE, VOCABULARY);
    let targets: Vec<TokenTarget> = tokens.iter().enumerate().map(|(row, &token)| TokenTarget { row: row as u32, token }).collect();
    let (hidden, weight) = (random(2, &[N_RESPONSE, HIDDEN])?, random(3, &[VOCABULARY, HIDDEN])?);
    let (d_hidden, gradient) = (random(4, &[N_RESPONSE, HIDDEN])?, random(5, &[VOCABULARY, HIDDEN])?);
    let [rows, matrix] = [N_RESPONSE * HIDDEN, VOCABULARY * HIDDEN].map(floats);
    let product = 2.0 * (N_RESPONSE * HIDDEN * VOCABULARY) as f64;
    let mut cases = Vec::new();
    for (name, dtype) in [("f32", ComputeDtype::F32), ("bf16", ComputeDtype::Bf16)] {
        let head = Head { soft_cap: None, compute: dtype };
        let (h, w, t) = (hidden.clone(), weight.clone(), targets.clone());
        let forward = case(format!("head {name} forward"), Traffic { read: rows + matrix, ..Traffic::default() }, product, move || {
            head.score(&h, &w, &t, 0).map(drop)
        });
        let (h, w, t, dh, dw) = (hidden.clone(), weight.clone(), targets.clone(), d_hidden.clone(), gradient.clone());
        let traffic = Traffic { read: rows + matrix, updated: rows + matrix, written: 0 };
        // As the step does it; one product for the logits and two for the gradients.
        let both = case(format!("head {name} forward and backward"), traffic, 3.0 * product, move || {
            let scored = head.score(&h, &w, &t, StepMemory::default().kept_logits)?;
            let d_log_probs = scored.log_probs.copy()?;
            head.backward(&h, &w, (&t, scored), &d_log_probs, &dh, Some(&dw))
        });
        cases.extend([forward, both].map(|case| Case { dtype, ..case }));
    }
    Ok(cases)
}

/// What happens once a step to all 135 million parameters.
fn optimizer() -> Result<Vec<Case>> {
    shapes::write_model(shapes::SMOLLM2)?;
    let policy = Rc::new(Decoder::load(&shapes::folder(shapes::SMOLLM2), ComputeDtype::F32, Purpose::Train)?);
    let n: usize = policy.parameters().iter().map(|parameter| parameter.value.elem_count()).sum();
    let mut adamw = AdamW::new(&OptimizerConfig::default(), 0, policy.parameters())?;
    let [zeroed, normed] = [policy.clone(), policy.clone()];
    Ok(vec![
        case("zero gradients", Traffic { written: floats(n), ..Traffic::default() }, 0.0, move || zeroed.zero_gradients()),
        case("gradient norm", Traffic { read: floats(n), ..Traffic::default() }, 0.0, move || gradient_norm(normed.parameters()).map(drop)),
        case("norm and adamw step", Traffic { read: 2 * floats(n), updated: 3 * floats(n), written: 0 }, 0.0, move || {
            adamw.step(policy.parameters(), 6e-7).map(drop)
        }),
    ])
}
