use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use dunlin_protocol::{
    Blob, Budgets, Bundle, Digest, ReasonCode, RetrainedBounds, TargetCustom, TaskId, cbor,
};
use dunlin_trust::{ApprovedFile, ApprovedRelease, check_bundle, check_retrained, sha256};

use crate::{Pack, Part, Terms, Work};

/// A refusal and its words.
pub(crate) type Refused = (ReasonCode, String);

/// Holds a manifest against what was signed and allowed. Its digest was checked before; this finds what a signer
/// got wrong, and what a controller that signs retrained releases must not do.
pub(crate) fn admit(
    task: &TaskId,
    part: &Part,
    bundle: &Bundle,
    bounds: Option<&RetrainedBounds>,
    budgets: &Budgets,
) -> Result<Pack, Refused> {
    let manifest = ApprovedFile {
        name: part.manifest.name.clone(),
        length: part.manifest.length,
        sha256: part.manifest.sha256,
    };
    let custom = TargetCustom { task: task.clone(), hard: part.hard.clone() };
    let approved =
        ApprovedRelease { release: part.release.clone(), manifest, custom, retrained: part.retrained };
    check_bundle(&approved, task, bundle).map_err(|refusal| (refusal.reason, refusal.detail))?;
    if bundle.hard.bundle_bytes > budgets.model_bytes_max {
        let detail = format!(
            "{} has {} bytes, the budget is {}",
            part.release, bundle.hard.bundle_bytes, budgets.model_bytes_max
        );
        return Err((ReasonCode::SizeExceeded, detail));
    }
    if bundle.hard.ram_bytes > budgets.model_ram_bytes_max {
        let detail = format!(
            "{} needs {} bytes of memory, the budget is {}",
            part.release, bundle.hard.ram_bytes, budgets.model_ram_bytes_max
        );
        return Err((ReasonCode::RamExceeded, detail));
    }
    let mut blobs: Vec<Blob> = bundle.blobs().collect();
    if part.retrained {
        let not_allowed =
            || (ReasonCode::RetrainedNotAllowed, format!("the policy of {task} allows no retrained models"));
        let bounds = bounds.ok_or_else(not_allowed)?;
        check_retrained(bounds, bundle).map_err(|refusal| (refusal.reason, refusal.detail))?;
        blobs.insert(0, bounds.anchor);
    }
    let manifest = Blob { digest: part.manifest.sha256, length: part.manifest.length };
    Ok(Pack { release: part.release.clone(), manifest, blobs, retrained: part.retrained })
}

/// Digest of what a release takes.
pub(crate) fn inputs(bundle: &Bundle) -> Digest {
    sha256(&cbor::encode(&bundle.signature.takes().collect::<Vec<_>>()))
}

/// Whether a release goes with the champion, as what it is for asks. A fallback that takes something else would never
/// answer, and nobody would know before it is needed; what takes part in an answer names the same classes, and a
/// meta-model takes the scores of all that it hears. The first of the work is the champion itself.
pub(crate) fn goes_with(work: &mut Work, bundle: &Bundle) -> Result<(), Refused> {
    let conflict =
        |what: &str| Err((ReasonCode::LineupConflict, format!("{} does not {what}", bundle.release)));
    let takes = *work.inputs.get_or_insert_with(|| inputs(bundle));
    let names = sha256(&cbor::encode(&bundle.signature.labels));
    let champions = *work.labels.get_or_insert(names);
    let Some(member) = work.goal.member(work.staged.len()) else {
        return if inputs(bundle) == takes { Ok(()) } else { conflict("take what the champion takes") };
    };
    if names != champions {
        return conflict("name the classes that the champion names");
    }
    let heard = 1 + work.goal.members.iter().filter(|(member, _)| member.role.is_voter()).count();
    match member.role.is_meta() {
        true if bundle.signature.takes_scores(heard) => Ok(()),
        true => conflict(&format!("take the scores of the {heard} it hears")),
        false if inputs(bundle) == takes => Ok(()),
        false => conflict("take what the champion takes"),
    }
}

/// The limits a release must keep to while it is proved.
pub(crate) fn terms(part: &Part, bounds: Option<&RetrainedBounds>, budgets: &Budgets) -> Terms {
    let bounds = bounds.filter(|_| part.retrained);
    Terms {
        latency_us_max: bounds
            .map_or(budgets.latency_us_max, |bounds| bounds.latency_us_max.min(budgets.latency_us_max)),
        ram_bytes_max: bounds.map_or(budgets.model_ram_bytes_max, |bounds| {
            bounds.ram_bytes_max.min(budgets.model_ram_bytes_max)
        }),
        anchor: bounds.map(|bounds| (bounds.anchor.digest, bounds.anchor_score_ppm_min)),
        bounds: bounds.cloned(),
    }
}

/// Holds a proof against its terms.
pub(crate) fn passes(terms: &Terms, proof: &crate::Proof) -> Result<(), Refused> {
    if proof.latency_us > terms.latency_us_max {
        return Err((
            ReasonCode::LatencyExceeded,
            format!("median of {} us, at most {} allowed", proof.latency_us, terms.latency_us_max),
        ));
    }
    if proof.peak_bytes > terms.ram_bytes_max {
        return Err((
            ReasonCode::RamExceeded,
            format!("{} bytes of memory taken, at most {} allowed", proof.peak_bytes, terms.ram_bytes_max),
        ));
    }
    match terms.anchor {
        Some((_, least)) if proof.anchor_ppm < least => Err((
            ReasonCode::AnchorScore,
            format!("{} ppm of the anchor set right, at least {least} needed", proof.anchor_ppm),
        )),
        Some(_) | None => Ok(()),
    }
}
