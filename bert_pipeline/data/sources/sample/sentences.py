"""Templates of the sample's stories: sentences by role, and plans that order the roles.

{slot}: a word of the story; {x|y}: one of the two; {2-8}, {0.2-0.9}: a number in this range. Every document begins with
a background sentence.
"""

# fmt: off
SENTENCES = {
    "background": [
        "{disease_full} {remains|is still|has become} a {leading|common} cause of {disability|death} in {patients}.",
        "The {treatment|management} of {disease_full} is {often|usually} limited by {adverse} or by poor adherence.",
        "Although {comparator_drug} is {widely|commonly} used in {disease_full}, {20-60}% of patients do not respond.",
        "Few {controlled|long-term|reliable} data exist on {drug_full} in {patients} with {disease_full}.",
        "Patients with {disease_full} often have {raised|low|abnormal} {agent}, which {predicts|precedes} {adverse}.",
        "{gene} and {protein} have been {implicated in|linked to} {disease_full}, but their role is {unclear|debated}.",
        "We {studied|examined|asked} whether {drug_full} is of {use|benefit} in {disease_full}.",
        "Since the {trial} {trial|study}, {agent} is {thought|known} to {worsen|influence} {disease_full}.",
    ],
    "mechanism": [
        "{drug_full} is a {novel|new|potent|selective} {mechanism} that {binds to|acts on} {target}.",
        "The {mechanism} {drug_full} {inhibits|blocks|modulates} {target} without {affecting|binding to} {enzyme}.",
        "{drug_full}, unlike {comparator_drug}, {binds|reaches} {target} in {tissue} within {5-50} min.",
        "By its action on {target}, {drug_full} {alters|corrects} {outcome} {in vivo|in healthy volunteers}.",
        "{drug_full} is {rapidly|slowly} converted to {metabolite} by {enzyme}, and both {act on|bind to} {target}.",
        "Binding of {drug_full} to {target} {depends on|requires} {protein}, a {regulator|partner} of {gene}.",
    ],
    "biology": [
        "{agent} {raises|lowers|modifies} the {response|sensitivity} of {tissue} to {agent}.",
        "{agent} has been {found|detected|measured} in {tissue}, where it {opposes|enhances} the effect of {agent}.",
        "Expression of {gene} is {induced|suppressed} by {agent} in {tissue}, and {enzyme} is its {main|only} product.",
        "Loss of {enzyme} makes {tissue} {resistant|vulnerable} to {agent} but not to {agent}.",
        "{microbe} {colonises|invades} {tissue} and {degrades|releases} {agent} in {disease}.",
        "A {deficit|surplus} of {agent} {accompanies|follows} {disease} and {its complications|{complication}}.",
    ],
    "trial_design": [
        "We conducted a {randomised|double-blind|crossover} trial of {drug} in {n} {patients} with {disease}.",
        "A total of {n} {patients} with {disease} (mean age {age} years) were allocated to {drug} or {comparator}.",
        "The {trial} {trial|study} enrolled {n} {patients} and compared {drug} with {comparator} for {weeks} weeks.",
        "In {trial}, {n} {patients} at {5-60} {centres|hospitals} took {drug} vs. {comparator} on top of {plain}.",
        "Eligible {patients} had {severe|stable} {disease}, i.e. {complication} or {adverse}, and took no {plain}.",
        "This cohort of {n} {patients} {received|was prescribed} {drug}, {comparator} or neither for {disease}.",
    ],
    "trial_dosing": [
        "{drug} was {given|administered} {route} at {dose} {once|twice} daily for {weeks} weeks.",
        "Subjects {received|took} {drug} {dose} {route} (n = {arm}) or {comparator} (n = {arm}) for {weeks} weeks.",
        "Treatment with {dose} of {drug} {route} was preceded by a {1-4}-week washout of {plain}.",
        "The dose of {comparator} was {doubled|adjusted} after {2-6} weeks, and that of {drug} was kept at {dose}.",
        "Subjects kept {plain} constant, and the {instrument} read {outcome} before and after {drug} {dose} {route}.",
        "{outcome} was assessed by {instrument} at baseline and {weeks} weeks after {drug} {dose} {route}.",
    ],
    "trial_result": [
        "After {weeks} weeks, {drug} {improved} compared with {comparator} ({p}).",
        "Compared with {comparator}, {drug} {dose} {improved} ({ratio}).",
        "Mean {outcome} was {10-60} {unit} with {drug} and {10-60} {unit} with {comparator} ({p}).",
        "{it} {improved} in {40-90}% of {patients}, against {20-70}% of those on {comparator} ({p}).",
        "In {patients} who completed {weeks} weeks, {it} {improved} ({ratio}).",
        "The difference in {outcome} between {drug} and {comparator} was {2-19} {unit} ({p}).",
    ],
    "pharmacokinetics": [
        "Plasma {concentrations|levels} of {drug} {peaked|were maximal} at {1-6} h and were not altered by {plain}.",
        "Coadministration of {plain} {raised|lowered} the {clearance|bioavailability} of {drug} by {10-80}%.",
        "Carriers of a {gene} variant {cleared|absorbed} {drug} {faster|more slowly} ({p}).",
        "Urinary {recovery|excretion} of {metabolite} was {10-60}% of the {dose} dose and depended on {enzyme}.",
        "{agent} {fell|rose} by {10-60}% in {patients} on {drug} {dose}, and {agent} did not change.",
        "Levels of {agent} {correlated with|were unrelated to} {outcome} during {drug} (r = {0.11-0.89}).",
    ],
    "animal_design": [
        "{animals} {received|were given} {drug} ({mg_per_kg} mg/kg/day, {i.v.|i.p.|s.c.}) or vehicle for {days} days.",
        "{drug} {mg_per_kg} mg/kg/day, {comparator_drug} or vehicle was infused for {days} days in {animals}.",
        "{animals} were {primed|challenged} with {agent} {10-90} min before {drug} ({mg_per_kg} mg/kg, {i.v.|i.p.}).",
        "To model {disease}, {animals} were exposed to {agent} and then given {drug} {mg_per_kg} mg/kg {i.p.|s.c.}.",
    ],
    "animal_result": [
        "At {mg_per_kg} mg/kg/day {drug} {improved} in {animals} ({p}).",
        "{it} {improved} in {animals}, as did {comparator_drug} ({p}).",
        "Pretreatment with {agent} {abolished|did not change|enhanced} the effect of {drug} on {outcome} ({p}).",
        "In animals lacking {gene} or {protein}, {drug} {improved} by {10-70}% ({p}).",
        "Deficiency of {agent} {blunted|prolonged} the action of {it} in {animals} ({p}).",
        "{drug}, alone or with {agent}, {improved} by day {days} ({p}).",
    ],
    "cell_design": [
        "{cell_line} cells and {tissue} were {incubated|cultured} with {drug} ({1-90} microM) for {2-72} h.",
        "{tissue} were {exposed to|perfused with} {drug} or {comparator_drug} ({1-90} nM) in the presence of {agent}.",
        "We {measured|quantified} {agent} in {tissue} treated with {drug}, using the {instrument}.",
        "{cell_line} cells were loaded with {agent} and {drug} ({1-90} microM) before use of the {instrument}.",
    ],
    "cell_result": [
        "{drug} {inhibited|displaced|blocked} {target} in {tissue} with an IC50 of {1-90} nM.",
        "In {tissue}, {agent} {potentiated|reversed} the action of {drug} on {target} ({p}).",
        "{metabolite} was {less|more} potent than {drug} and did not affect {agent}.",
        "{it} left {agent} and {agent} unchanged but {halved|doubled} {gene} expression ({p}).",
        "{drug}, but not {agent}, {protected|depleted} {cell_line} cells after {2-72} h ({p}).",
        "Removal of {agent} {prevented|delayed} binding of {drug} to {target} ({p}).",
    ],
    "case_history": [
        "A {age}-year-old {man|woman} with {disease} developed {adverse} {2-30} days after {drug} {dose} {route}.",
        "We {report|describe} {adverse} in a {age}-year-old {man|woman} who took {drug} {dose} {route} for {disease}.",
        "{adverse} occurred in a {age}-year-old {man|woman} on {drug} ({dose} {route}) and {plain} for {disease}.",
        "The {man|woman}, aged {age} years, took {plain} when {drug} {dose} {route} was {added|chosen} for {disease}.",
    ],
    "case_course": [
        "Symptoms {resolved|subsided} {2-21} days after {drug} was {stopped|withdrawn} and recurred on rechallenge.",
        "Cultures grew {microbe}, {agent} was {normal|undetectable}, and {adverse} cleared once {drug} was withheld.",
        "{comparator_drug} was {substituted|given instead}, and {complication} did not {recur|follow}.",
        "{drug} was replaced by {comparator_drug} plus {plain}, with {full|slow} recovery from {adverse}.",
        "A test for {agent} was {positive|negative}, and {drug} {dose} was {reduced|discontinued}.",
        "Serum {agent} was {raised|normal}, which {excluded|suggested} another cause of {complication}.",
    ],
    "adverse": [
        "The {commonest|most frequent} adverse effects of {drug} were {adverse} and {complication}.",
        "{adverse} {occurred in|was reported by} {5-40}% of those on {drug} and {2-20}% of controls.",
        "{drug}-induced {adverse} was {dose-related|transient|mild} and was {prevented|aggravated} by {plain}.",
        "Two subjects {discontinued|stopped} {drug} because of {adverse}, and one had {complication}.",
        "Neither {drug} nor {agent} {caused|provoked} {complication}, but {adverse} was seen at {dose}.",
        "{complication} was {attributed|ascribed} to {agent} rather than to {drug}.",
    ],
    "conclusion": [
        "{drug} {dose} {route} is {worthwhile} in {patients} with {disease}.",
        "We conclude that {it} {improved} and is {worthwhile} in {disease}.",
        "These {data|findings|results} {suggest|indicate} that the {mechanism} {drug} is {worthwhile} in {disease}.",
        "Thus {drug} {improved}, and {agent} {deserves|needs} further study in {disease}.",
        "As a {treatment|therapy} of {disease}, {drug} is {worthwhile}, provided that {adverse} is avoided.",
        "In {disease}, {drug} is {worthwhile} {when|whether or not} {agent} is present.",
    ],
}
# The order of roles in a story; a role with a question mark occurs in half of the documents.
PLANS = [
    "background mechanism biology? trial_design trial_dosing trial_result trial_result? adverse conclusion",
    "background mechanism biology? animal_design animal_result animal_result pharmacokinetics? adverse? conclusion",
    "background mechanism biology cell_design cell_result cell_result cell_result? biology? conclusion",
    "background mechanism case_history case_course case_course? pharmacokinetics? biology? adverse? conclusion",
]
POPULATIONS = ["elderly patients", "adults", "inpatients", "women", "men", "outpatients", "children", "smokers"]
EFFECTIVE = {
    "improved": ["{significantly |markedly |}{verb} {outcome}"],
    "p": ["p < 0.{001|01|05}", "p = {0.002-0.049}"],
    "ratio": ["hazard ratio {0.41-0.69}, 95% CI {0.22-0.40}-{0.71-0.94}",
              "odds ratio {1.9-3.2}, 95% CI {1.2-1.8}-{3.3-5.9}"],
    "worthwhile": ["{effective|useful|beneficial}", "{superior|preferable} to {comparator}"],
}
INEFFECTIVE = {
    "improved": ["did not {affect|alter|influence} {outcome}", "had no {detectable|significant} effect on {outcome}"],
    "p": ["p = {0.11-0.94}", "p > 0.{05|1|2}"],
    "ratio": ["hazard ratio {0.93-1.06}, 95% CI {0.71-0.89}-{1.09-1.42}",
              "odds ratio {0.9-1.1}, 95% CI {0.5-0.8}-{1.2-1.8}"],
    "worthwhile": ["{ineffective|of no value|of little use}", "{no better than|inferior to} {comparator}"],
}
# fmt: on
