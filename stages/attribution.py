"""Stage attribution@S: where the teachers, the float student and its artifacts look."""

from pipeline.attribution.attribute import attribute
from pipeline.attribution.params import AttributionParams
from pipeline.attribution.records import title
from pipeline.core.arguments import parse_names, require
from pipeline.core.errors import run
from pipeline.core.params import load


def main() -> None:
    (student,) = parse_names("student")
    params = load(AttributionParams)
    require(student, params.students.zoo, "student", "params.yaml: students.zoo")
    record = attribute(params, student)
    for its in record.networks:
        name = title(its.kind, its.name)
        if its.status != "computed":
            print(f"{name}: {its.status.replace('_', ' ')}: {its.reason}")
        elif its.occlusion:
            print(
                f"{name}: Pearson {its.occlusion.pearson or 'undefined'}, IoU "
                f"{its.occlusion.iou or 'undefined'} with the float student"
            )
    for check in record.sanity:
        told = "none" if not check.mixed_up else ", ".join(check.mixed_up)
        print(f"{check.kind}: not told apart from random weights: {told}")
    print(f"{record.images} images in {record.minutes:.1f} minutes")


if __name__ == "__main__":
    run(main)
