"""Models of rows: scikit-learn, LightGBM and XGBoost."""

import numpy as np
import onnx

from cases import RNG, ROWS

FEATURES = 6
OPSET = {"": 17, "ai.onnx.ml": 3}


def table(rows, classes=3):
    """Rows of numbers, a class and a number for each."""
    x = RNG.normal(size=(rows, FEATURES)).astype(np.float32)
    z = x @ np.array([1.5, -2.0, 0.7, 0.0, 0.4, -1.1], dtype=np.float32) + 0.6 * x[:, 0] * x[:, 1]
    label = np.digitize(z, np.quantile(z, np.linspace(0, 1, classes + 1)[1:-1])).astype(np.int64)
    return x, label, z.astype(np.float32)


def mixed(rows):
    """Columns of numbers with holes, and of text."""
    import pandas

    x, label, z = table(rows, 2)
    holes = RNG.random((rows, 2)) < 0.2
    numbers = np.where(holes, np.nan, x[:, :2]).astype(np.float32)
    frame = pandas.DataFrame({"a": numbers[:, 0], "b": numbers[:, 1]})
    frame["colour"] = RNG.choice(["red", "green", "blue"], rows)
    frame["size"] = RNG.choice(["small", "medium", "large", "huge"], rows)
    return frame, label, z


make_attribute = onnx.helper.make_attribute


def whole(key, value, *args, **kwargs):
    """skl2onnx 1.20 hands lists with booleans to onnx 1.23, which wants integers."""
    if isinstance(value, (list, np.ndarray)) and any(isinstance(flag, (bool, np.bool_)) for flag in value):
        value = [int(flag) for flag in value]
    return make_attribute(key, value, *args, **kwargs)


def convert(model, sample, **options):
    from skl2onnx import to_onnx

    onnx.helper.make_attribute = whole

    return to_onnx(model, sample, target_opset=OPSET, **options)


def learners():
    from sklearn import (
        calibration, cluster, cross_decomposition, discriminant_analysis, ensemble, gaussian_process, linear_model,
        mixture, multiclass, multioutput, naive_bayes, neighbors, neural_network, svm, tree,
    )

    lm, en, nb, nn = linear_model, ensemble, naive_bayes, neural_network
    classifiers = {
        "LogisticRegression": lm.LogisticRegression(),
        "LogisticRegressionCV": lm.LogisticRegressionCV(cv=2),
        "SGDClassifier": lm.SGDClassifier(loss="log_loss", random_state=0),
        "SGDClassifier, hinge": lm.SGDClassifier(random_state=0),
        "Perceptron": lm.Perceptron(random_state=0),
        "PassiveAggressiveClassifier": lm.PassiveAggressiveClassifier(random_state=0),
        "RidgeClassifier": lm.RidgeClassifier(),
        "LinearSVC": svm.LinearSVC(),
        "SVC": svm.SVC(),
        "SVC, linear": svm.SVC(kernel="linear"),
        "SVC, polynomial": svm.SVC(kernel="poly", coef0=1.0),
        "SVC, sigmoid": svm.SVC(kernel="sigmoid"),
        "SVC, probabilities": svm.SVC(probability=True, random_state=0),
        "NuSVC": svm.NuSVC(),
        "LinearDiscriminantAnalysis": discriminant_analysis.LinearDiscriminantAnalysis(),
        "QuadraticDiscriminantAnalysis": discriminant_analysis.QuadraticDiscriminantAnalysis(),
        "GaussianNB": nb.GaussianNB(),
        "BernoulliNB": nb.BernoulliNB(),
        "KNeighborsClassifier": neighbors.KNeighborsClassifier(),
        "NearestCentroid": neighbors.NearestCentroid(),
        "DecisionTreeClassifier": tree.DecisionTreeClassifier(max_depth=6, random_state=0),
        "RandomForestClassifier": en.RandomForestClassifier(30, max_depth=6, random_state=0),
        "ExtraTreesClassifier": en.ExtraTreesClassifier(30, max_depth=6, random_state=0),
        "GradientBoostingClassifier": en.GradientBoostingClassifier(n_estimators=20, random_state=0),
        "HistGradientBoostingClassifier": en.HistGradientBoostingClassifier(max_iter=20, random_state=0),
        "AdaBoostClassifier": en.AdaBoostClassifier(n_estimators=10, random_state=0),
        "BaggingClassifier": en.BaggingClassifier(n_estimators=5, random_state=0),
        "VotingClassifier": en.VotingClassifier(
            [("a", lm.LogisticRegression()), ("b", tree.DecisionTreeClassifier(max_depth=4, random_state=0))],
            voting="soft",
            flatten_transform=False,
        ),
        "StackingClassifier": en.StackingClassifier(
            [("a", lm.LogisticRegression()), ("b", tree.DecisionTreeClassifier(max_depth=4, random_state=0))], cv=2
        ),
        "CalibratedClassifierCV": calibration.CalibratedClassifierCV(lm.LogisticRegression(), cv=2),
        "OneVsRestClassifier": multiclass.OneVsRestClassifier(lm.LogisticRegression()),
        "OneVsOneClassifier": multiclass.OneVsOneClassifier(lm.LogisticRegression()),
        "MLPClassifier": nn.MLPClassifier((16,), max_iter=60, random_state=0),
    }
    regressors = {
        "LinearRegression": lm.LinearRegression(),
        "Ridge": lm.Ridge(),
        "Lasso": lm.Lasso(alpha=0.01),
        "ElasticNet": lm.ElasticNet(alpha=0.01),
        "BayesianRidge": lm.BayesianRidge(),
        "HuberRegressor": lm.HuberRegressor(),
        "SGDRegressor": lm.SGDRegressor(random_state=0),
        "LinearSVR": svm.LinearSVR(),
        "SVR": svm.SVR(),
        "NuSVR, polynomial": svm.NuSVR(kernel="poly", coef0=1.0),
        "KNeighborsRegressor": neighbors.KNeighborsRegressor(),
        # With a fitted kernel, terms of several thousand cancel to an answer below one: float32 knows its fourth digit on no
        # runtime, and another processor's order of adding changes it.
        "GaussianProcessRegressor": gaussian_process.GaussianProcessRegressor(
            gaussian_process.kernels.RBF(2.0, "fixed"), alpha=1.0
        ),
        "PLSRegression": cross_decomposition.PLSRegression(2),
        "DecisionTreeRegressor": tree.DecisionTreeRegressor(max_depth=6, random_state=0),
        "RandomForestRegressor": en.RandomForestRegressor(30, max_depth=6, random_state=0),
        "ExtraTreesRegressor": en.ExtraTreesRegressor(30, max_depth=6, random_state=0),
        "GradientBoostingRegressor": en.GradientBoostingRegressor(n_estimators=20, random_state=0),
        "HistGradientBoostingRegressor": en.HistGradientBoostingRegressor(max_iter=20, random_state=0),
        "AdaBoostRegressor": en.AdaBoostRegressor(n_estimators=10, random_state=0),
        "BaggingRegressor": en.BaggingRegressor(n_estimators=5, random_state=0),
        "VotingRegressor": en.VotingRegressor([("a", lm.Ridge()), ("b", lm.LinearRegression())]),
        "MultiOutputRegressor": multioutput.MultiOutputRegressor(lm.Ridge()),
        "MLPRegressor": nn.MLPRegressor(hidden_layer_sizes=(16,), max_iter=60, random_state=0),
    }
    others = {
        "IsolationForest": en.IsolationForest(n_estimators=20, random_state=0),
        "OneClassSVM": svm.OneClassSVM(),
        "LocalOutlierFactor": neighbors.LocalOutlierFactor(novelty=True),
        "KMeans": cluster.KMeans(4, n_init=2, random_state=0),
        "GaussianMixture": mixture.GaussianMixture(3, random_state=0),
    }
    return classifiers, regressors, others


def transformers():
    from sklearn import decomposition, feature_selection, preprocessing as pre
    from sklearn.impute import SimpleImputer

    return {
        "StandardScaler": pre.StandardScaler(),
        "MinMaxScaler": pre.MinMaxScaler(),
        "MaxAbsScaler": pre.MaxAbsScaler(),
        "RobustScaler": pre.RobustScaler(),
        "Normalizer, l1": pre.Normalizer("l1"),
        "Normalizer, l2": pre.Normalizer("l2"),
        "Normalizer, max": pre.Normalizer("max"),
        "Binarizer": pre.Binarizer(threshold=0.2),
        "KBinsDiscretizer": pre.KBinsDiscretizer(4, encode="onehot-dense"),
        "PolynomialFeatures": pre.PolynomialFeatures(2),
        "PowerTransformer": pre.PowerTransformer(),
        "QuantileTransformer": pre.QuantileTransformer(n_quantiles=20),
        "SimpleImputer": SimpleImputer(),
        "SelectKBest": feature_selection.SelectKBest(k=3),
        "VarianceThreshold": feature_selection.VarianceThreshold(),
        "PCA": decomposition.PCA(3),
        "TruncatedSVD": decomposition.TruncatedSVD(3, random_state=0),
    }


def sklearn(cases):
    from sklearn import preprocessing as pre
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import ComplementNB, GaussianNB, MultinomialNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import SVC

    who = "scikit-learn (skl2onnx)"

    def numeric(name, model, target, zipmap=False, change=lambda x: x):
        def make():
            x, label, z = table(240, target if isinstance(target, int) else 3)
            x = change(x)
            goal = {"number": z, "none": None}.get(target, label)
            if target == "text":
                goal = np.array(["low", "middle", "high"])[label]
            if name == "MultiOutputRegressor":
                goal = np.stack([z, -z], 1)
            # What SelectKBest needs and PCA ignores.
            model.fit(x, label if goal is None else goal)
            options = {id(model): {"zipmap": zipmap}} if hasattr(model, "predict_proba") else None
            if not hasattr(model, "classes_"):
                options = None
            test = change(table(ROWS)[0])
            return convert(model, x[:1], options=options), {"X": test}

        cases.add(who, name + {2: ", 2 classes", 3: ", 3 classes", "text": ", text labels"}.get(target, ""), make)

    classifiers, regressors, others = learners()
    for name, model in classifiers.items():
        for classes in (2, 3):
            numeric(name, model, classes)
    for name, model in {
        "LogisticRegression": LogisticRegression(),
        "RandomForestClassifier": RandomForestClassifier(10, max_depth=4, random_state=0),
        "MLPClassifier": MLPClassifier((8,), max_iter=40, random_state=0),
        "GaussianNB": GaussianNB(),
        "SVC": SVC(),
        "KNeighborsClassifier": KNeighborsClassifier(),
    }.items():
        numeric(name, model, "text")
    numeric("LogisticRegression, ZipMap", LogisticRegression(), 3, zipmap=True)
    numeric("LogisticRegression, ZipMap", LogisticRegression(), "text", zipmap=True)
    for name, model in {"MultinomialNB": MultinomialNB(), "ComplementNB": ComplementNB()}.items():
        numeric(name, model, 3, change=np.abs)
    for name, model in regressors.items():
        numeric(name, model, "number")
    for name, model in {**others, **transformers()}.items():
        numeric(name, model, "none")
    for name, model in {
        "LogisticRegression, float64": LogisticRegression(),
        "RandomForestClassifier, float64": RandomForestClassifier(10, max_depth=4, random_state=0),
        "MLPClassifier, float64": MLPClassifier((8,), max_iter=40, random_state=0),
        "StandardScaler, float64": pre.StandardScaler(),
    }.items():
        numeric(name, model, 2, change=lambda x: x.astype(np.float64))
    pipes = {
        "scaler and logistic regression": make_pipeline(pre.StandardScaler(), LogisticRegression()),
        "imputer, scaler and MLP": make_pipeline(
            SimpleImputer(), pre.StandardScaler(), MLPClassifier((8,), max_iter=40, random_state=0)
        ),
    }
    for name, model in pipes.items():
        numeric(name, model, 2)

    def texts(name, model, goal=True, columns=("a", "b", "colour", "size")):
        def make():
            frame, label, _ = mixed(240)
            frame = frame[list(columns)]
            model.fit(frame, label if goal else None)
            test = mixed(ROWS)[0][list(columns)]
            ports = {c: test[[c]].to_numpy(object if c in ("colour", "size") else np.float32) for c in columns}
            options = {id(model): {"zipmap": False}} if goal else None
            return convert(model, frame[:1], options=options), ports

        cases.add(who, name, make)

    categories = [["red", "green"], ["small", "medium", "large", "huge"]]
    numbers = make_pipeline(SimpleImputer(), pre.StandardScaler())
    for unknown in ("error", "ignore"):
        prepare = ColumnTransformer(
            [("n", numbers, ["a", "b"]), ("t", pre.OneHotEncoder(handle_unknown=unknown), ["colour", "size"])]
        )
        texts(f"ColumnTransformer, one-hot ({unknown}) and logistic regression", make_pipeline(prepare, LogisticRegression()))
    prepare = ColumnTransformer(
        [
            ("n", SimpleImputer(strategy="median"), ["a", "b"]),
            ("t", pre.OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), ["colour", "size"]),
        ]
    )
    texts("ColumnTransformer, ordinal and boosted trees", make_pipeline(prepare, GradientBoostingClassifier(n_estimators=10)))
    only = ("colour", "size")
    texts("OneHotEncoder", pre.OneHotEncoder(sparse_output=False), False, only)
    texts(
        "OneHotEncoder, unknown categories",
        pre.OneHotEncoder(categories=categories, handle_unknown="ignore", sparse_output=False),
        False,
        only,
    )
    texts("OrdinalEncoder", pre.OrdinalEncoder(), False, only)

    def labels():
        model = pre.LabelEncoder().fit(["a", "b", "c"])
        from skl2onnx.common.data_types import StringTensorType

        return convert(model, None, initial_types=[("X", StringTensorType([None]))]), {
            "X": RNG.choice(["a", "b", "c"], ROWS).astype(object)
        }

    cases.add(who, "LabelEncoder", labels)

    def ordinals():
        x = RNG.integers(0, 4, (240, 3)).astype(np.int64)
        model = pre.OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(x)
        return convert(model, x[:1]), {"X": RNG.integers(0, 5, (ROWS, 3)).astype(np.int64)}

    cases.add(who, "OneHotEncoder, integers", ordinals)


def boosters(cases, who, models, export):
    from onnxmltools.convert.common.data_types import FloatTensorType

    for name, model, target, holes in models:

        def make(model=model, target=target, holes=holes):
            x, label, z = table(240, target if isinstance(target, int) else 3)
            if target == "count":
                z = np.round(np.exp(z / 4)).astype(np.float32)
            x[RNG.random(x.shape) < holes] = np.nan
            model.fit(x, label if isinstance(target, int) else z)
            test = table(ROWS)[0]
            test[RNG.random(test.shape) < holes] = np.nan
            file = export(model, initial_types=[("X", FloatTensorType([None, FEATURES]))], target_opset=15)
            return file, {"X": test}

        suffix = {2: ", 2 classes", 3: ", 3 classes"}.get(target, "") + (", missing values" if holes else "")
        cases.add(who, name + suffix, make)


def lightgbm(cases):
    from lightgbm import LGBMClassifier, LGBMRegressor
    from onnxmltools import convert_lightgbm

    few = {"n_estimators": 20, "verbose": -1, "num_threads": 1}
    forest = {**few, "boosting_type": "rf", "bagging_freq": 1, "bagging_fraction": 0.7}

    def export(model, **kw):
        return convert_lightgbm(model, **kw, **({"zipmap": False} if hasattr(model, "classes_") else {}))

    models = [("LGBMClassifier", LGBMClassifier(**few), k, holes) for k in (2, 3) for holes in (0, 0.2)]
    models += [
        ("LGBMClassifier, dart", LGBMClassifier(**few | {"boosting_type": "dart"}), 2, 0),
        ("LGBMClassifier, random forest", LGBMClassifier(**forest), 2, 0),
        ("LGBMClassifier, one against all", LGBMClassifier(**few, objective="multiclassova"), 3, 0),
        ("LGBMRegressor", LGBMRegressor(**few), "number", 0),
        ("LGBMRegressor", LGBMRegressor(**few), "number", 0.2),
        ("LGBMRegressor, L1", LGBMRegressor(**few, objective="mae"), "number", 0),
        ("LGBMRegressor, Poisson", LGBMRegressor(**few, objective="poisson"), "count", 0),
        ("LGBMRegressor, random forest", LGBMRegressor(**forest), "number", 0),
    ]
    boosters(cases, "LightGBM (onnxmltools)", models, export)


def xgboost(cases):
    from onnxmltools import convert_xgboost
    from xgboost import XGBClassifier, XGBRegressor, XGBRFClassifier, XGBRFRegressor

    few = {"n_estimators": 20, "max_depth": 4, "n_jobs": 1}
    models = [("XGBClassifier", XGBClassifier(**few), k, holes) for k in (2, 3) for holes in (0, 0.2)]
    models += [
        ("XGBClassifier, dart", XGBClassifier(**few, booster="dart"), 2, 0),
        ("XGBRFClassifier", XGBRFClassifier(**few), 2, 0),
        ("XGBRegressor", XGBRegressor(**few), "number", 0),
        ("XGBRegressor", XGBRegressor(**few), "number", 0.2),
        ("XGBRegressor, Poisson", XGBRegressor(**few, objective="count:poisson"), "count", 0),
        ("XGBRFRegressor", XGBRFRegressor(**few), "number", 0),
    ]
    boosters(cases, "XGBoost (onnxmltools)", models, convert_xgboost)
