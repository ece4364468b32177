module.exports.main = ({ name = "world" }) => ({ hello: name });
