//! Cases of single operators: ONNX's own tests, and the edges of what operators are defined for. There are thousands, so that
//! they are counted, and what is refused of a supported operator is named by its form.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::{Result, ensure};
use dunlin_engine::supported_ops;

use crate::case::{Case, Outcome};

const HEAD: &str = "
## Single operators

ONNX's own tests of single operators, which come with the package `onnx`: each as it is, and, where it has several inputs,
once more with all but the first as constants of the file, as exporters write axes, shapes and weights. And further ones of
this project, of values and forms at the edge of what an operator is defined for: large and small magnitudes, both zeros,
subnormals, infinities and NaN, ties, wrapped indices, empty axes, every way to pad. The answer that belongs is ONNX Runtime's;
where that does not take a test, the one that comes with it. Every operator of `ai.onnx` that the engine lists has a case that is
equal, or the command fails. Tests with tensors that no request can hold (bfloat16, floats and integers below 8 bits, complex
numbers, sequences, optional values) are left out.

Two things are not asked. Where a choice is made between values (`Relu`, `Clip`, `Max`, `Min`, `HardSigmoid`, `Sigmoid`, `Tanh`,
`ReduceMax`, `ReduceMin`, `ArgMax`, `ArgMin`, `Hardmax`, `MaxPool`, `TopK`), NaN is not held to ONNX Runtime's answer: that is
itself NaN or another value by where the NaN lies, and this engine often answers with a number. And a `Cast` of a float that is
outside of the integer's range, which ONNX leaves undefined.

| cases | all | equal | refused | wrong | not run by ONNX Runtime |
|---|---|---|---|---|---|
";

fn is_listed(case: &Case, listed: &BTreeSet<String>) -> bool {
    case.meta.single.iter().all(|op| listed.contains(op))
}

/// The part of the page about them; empty where there are none.
pub(crate) fn section(cases: &[Case]) -> Result<String> {
    if cases.is_empty() {
        return Ok(String::new());
    }
    let listed = supported_ops();
    let mut counts: BTreeMap<(&str, bool), [usize; 4]> = BTreeMap::new();
    let mut forms: BTreeMap<&str, usize> = BTreeMap::new();
    for case in cases {
        let is_listed = is_listed(case, &listed);
        let column = match &case.outcome {
            Outcome::Equal { .. } => 0,
            Outcome::Refused(form) => {
                if is_listed {
                    *forms.entry(form).or_default() += 1;
                }
                1
            }
            Outcome::Wrong(_) => 2,
            Outcome::Missing(_) => 3,
        };
        counts.entry((&case.meta.exporter, !is_listed)).or_default()[column] += 1;
    }
    let mut page = HEAD.to_owned();
    for ((exporter, is_other), [equal, refused, wrong, missing]) in counts {
        let of = if is_other { "with other operators" } else { "of supported operators" };
        let all = equal + refused + wrong;
        writeln!(page, "| {exporter}, {of} | {all} | {equal} | {refused} | {wrong} | {missing} |")?;
    }
    page += "\nWhat is refused of supported operators, alone or in what they make up:\n\n| form | cases |\n|---|---|\n";
    for (form, count) in forms {
        writeln!(page, "| {} | {count} |", form.replace('|', "\\|"))?;
    }
    Ok(page)
}

/// Checks that none is wrong, and that each supported operator of `ai.onnx` is among those that are equal.
///
/// # Errors
/// Names how many are wrong, or the operators.
pub(crate) fn check(cases: &[Case]) -> Result<()> {
    if cases.is_empty() {
        return Ok(());
    }
    let count = |is: fn(&Outcome) -> bool| cases.iter().filter(|case| is(&case.outcome)).count();
    let equal = count(|o| matches!(o, Outcome::Equal { .. }));
    let wrong = count(|o| matches!(o, Outcome::Wrong(_)));
    println!("{equal} of {} cases of single operators equal, {wrong} wrong", cases.len());
    ensure!(wrong == 0, "{wrong} cases of single operators are answered otherwise than by ONNX Runtime");
    let held = cases.iter().filter(|case| matches!(case.outcome, Outcome::Equal { .. }));
    let held: BTreeSet<&String> = held.flat_map(|case| &case.meta.single).collect();
    let listed = supported_ops();
    let bare: Vec<&String> =
        listed.iter().filter(|op| op.starts_with("ai.onnx/") && !held.contains(op)).collect();
    ensure!(bare.is_empty(), "no case holds {bare:?} to ONNX Runtime");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Meta;

    fn case(op: &str, outcome: Outcome) -> Case {
        let meta = Meta { single: vec![op.to_owned()], ..Meta::default() };
        Case { meta, outcome, rewritten: Vec::new(), right: (0, 0) }
    }

    fn equal() -> Outcome {
        Outcome::Equal { difference: 0.0, times: None }
    }

    #[test]
    fn each_supported_operator_needs_a_case_that_is_equal() {
        let all = || supported_ops().into_iter().filter(|op| op.starts_with("ai.onnx/"));
        let mut cases: Vec<Case> = all().map(|op| case(&op, equal())).collect();
        check(&cases).unwrap();
        cases[0].outcome = Outcome::Refused("as the runtime does not take it".into());
        let first = all().next().unwrap();
        assert_eq!(
            check(&cases).unwrap_err().to_string(),
            format!("no case holds [{first:?}] to ONNX Runtime")
        );
        cases[0] = case(&first, equal());
        cases.push(case(&first, Outcome::Wrong("value 0 is 1 where 2 belongs".into())));
        assert!(check(&cases).unwrap_err().to_string().starts_with("1 cases"));
    }

    #[test]
    fn what_is_refused_of_supported_operators_is_counted_by_its_form() {
        let refused = |op| case(op, Outcome::Refused("some form".into()));
        let cases = [refused("ai.onnx/Abs"), refused("ai.onnx/Abs"), refused("ai.onnx/Loop")];
        let page = section(&cases).unwrap();
        assert!(page.contains("| some form | 2 |"), "{page}");
        assert!(page.contains(", of supported operators | 2 | 0 | 2 | 0 | 0 |"), "{page}");
        assert!(page.contains(", with other operators | 1 | 0 | 1 | 0 | 0 |"), "{page}");
        assert_eq!(section(&[]).unwrap(), "");
    }
}
