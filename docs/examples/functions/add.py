def main(params):
    return {"x": params["x"] + 5}
